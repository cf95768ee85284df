#!/usr/bin/env bash
# Proves the sdist, the wheel for this machine and the wheel for any, in clean environments:
#   tools/check_wheel.sh [SCRIPT.py ...]
# Each SCRIPT must run too where only torch, numpy and the wheel are. PYTHON chooses the interpreter:
# it has torch, numpy, mypy, build, twine and auditwheel, and lends the first two. DIST is a folder that
# holds the three files already, or is to hold them.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)

python=$(command -v "${PYTHON:-python3}")
scripts=()
for script in "$@"; do scripts+=("$(realpath "$script")"); done
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
dist=${DIST:-$work/dist}
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
unset SWAV_KERNELS_BACKEND SWAV_KERNELS_CPU TRITON_INTERPRET PYTHONPATH SWAV_PURE

say() { printf -- '- %s (%d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_wheel.sh: %s\n' "$1" >&2; exit 1; }

if [ ! -d "$dist" ]; then
  say 'an sdist, and from it both wheels'
  "$python" -m build --sdist --outdir "$dist" "$project" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; fail 'the sdist cannot be built'; }
  # without CUDA, as the wheels of a release
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$dist" -C cmake.define.SWAV_CUDA=OFF \
    "$dist"/*.tar.gz
  SWAV_PURE=1 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$dist"/*.tar.gz
fi
sdist=$(ls "$dist"/swav_kernels-*.tar.gz)
pure=$(ls "$dist"/swav_kernels-*-py3-none-any.whl)
wheel=$(ls "$dist"/swav_kernels-*.whl | grep -v -- '-py3-none-any.whl$')

say 'contents, sizes, metadata'
"$python" "$project/tools/check_contents.py" "$sdist" "$wheel" "$pure"
"$python" -m twine check --strict "$dist"/* >"$work/twine.log" 2>&1 ||
  { cat "$work/twine.log"; fail 'twine finds a fault'; }
if [ "$(uname)" = Linux ]; then
  "$python" -m auditwheel show "$wheel" >"$work/audit.log" || { cat "$work/audit.log"; exit 1; }
  tr '\n' ' ' <"$work/audit.log" | grep -oE 'platform tag(:| to) "manylinux_[a-z0-9_]+"' ||
    { cat "$work/audit.log"; fail 'auditwheel sees no manylinux that it could be of'; }
fi

# A path with spaces, where only torch, numpy and what they need are lent
new_environment() {
  venv="$work/an environment for $1"
  "$python" -m venv --without-pip "$venv"
  "$python" "$project/.ci/share_core.py" "$venv" >/dev/null
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
}
packages() {
  "$venv/bin/python" -c '
from importlib.metadata import distributions
print(*sorted({d.name for d in distributions()}), sep="\n")'
}
install_adds_only_itself() {
  packages >"$work/before"
  # without an index: a requirement that is not there would be an error
  "$python" -m pip --python "$venv/bin/python" install --quiet --no-index "$1"
  packages >"$work/after"
  local added; added=$(comm -13 "$work/before" "$work/after")
  [ "$added" = swav-kernels ] || fail "installing $1 added: $added"
}
smoke() { "$venv/bin/python" "$project/tools/smoke.py" "$@"; }

cd "$work"
say 'the wheel beside torch: nothing else is installed, and it runs without triton'
new_environment 'the wheel'
install_adds_only_itself "$wheel"
rm -rf "$site"/triton "$site"/triton-*  # torch for CUDA lends it
smoke --triton-why 'triton is not installed'
for script in ${scripts[@]+"${scripts[@]}"}; do "$venv/bin/python" "$script"; done
"$venv/bin/swav" --help >/dev/null
if "$venv/bin/swav" train >train.log 2>&1 || ! grep -q 'swav-kernels\[' train.log; then
  cat train.log
  fail 'swav train without its extra must fail and name the extra'
fi

say 'a folder that cannot be written, and no HOME'
user=()
if [ "$(id -u)" -eq 0 ]; then  # root writes everywhere, unless it gives that up
  user=(setpriv --bounding-set=-dac_override --inh-caps=-dac_override)
fi
chmod -R a-w "$site"
if "${user[@]}" touch "$site/swav_kernels/probe" 2>/dev/null; then
  fail "$site is meant to be read-only and can be written"
fi
env -u HOME "${user[@]}" "$venv/bin/python" "$project/tools/smoke.py"
chmod -R u+w "$site"

say 'a broken triton'
mkdir "$site/triton"
for breakage in 'def broken(:' 'raise RuntimeError("of another torch")' 'import no_such_module'; do
  echo "$breakage" >"$site/triton/__init__.py"
  TRITON_INTERPRET=1 smoke --triton-why 'triton cannot be imported'
done
rm -r "$site/triton"

say 'a compiled module that is text, empty, cut off, or not there'
module=$(ls "$site"/swav_kernels/_C.*.so)
size=$(wc -c <"$module")
cp "$module" intact
for damage in 'echo broken' 'true' "head -c $((size / 2)) intact" "head -c 4096 intact"; do
  $damage >"$module"
  smoke --cpu no --why _C
done
rm "$module"
smoke --cpu no --why 'without the compiled module'
"$venv/bin/swav" doctor | grep '^backend cpu *no: '

say 'the wheel for any machine'
new_environment 'any machine'
install_adds_only_itself "$pure"
smoke --cpu no --why 'without the compiled module'

say 'types, as a user sees them'
cat >user.py <<'USER'
from typing import assert_type

import swav_kernels as sk
from torch import Tensor

prototypes = sk.Prototypes(16, 37)
assert_type(sk.available_backends(), tuple[str, ...])
assert_type(sk.sinkhorn(prototypes.weight.detach(), epsilon=0.05), Tensor)
sk.sinkhorn(epsilon="small")  # type: ignore[call-arg, arg-type]
USER
"$python" -m mypy --strict --warn-unused-ignores --python-executable "$venv/bin/python" user.py
say 'done'
