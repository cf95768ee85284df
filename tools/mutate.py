"""Plants one fault after the other in a copy of the checkout; the tests must find each.

    python tools/mutate.py                  # all of tests/mutations/*.toml
    python tools/mutate.py triton           # one list; lists may run beside each other
    python tools/mutate.py cpp/step-backwards python/row-maximum

A fault keeps the shape, dtype and finiteness of what every op gives (keeps_shapes.py), or it does
not count. It is found if a test of the files that its entry names fails, and that test passes on
the code as it is. Writes tests/mutations/RESULT.md; exit status 1 if a fault is not found.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch  # noqa: F401  # so that the runs of the tests need not
from checkout import ROOT, SITE, build, environment_of, in_checkout, located
from keeps_shapes import DIFFERENT
from mutations import KINDS, Mutation, load, write_table

FOLDER = ROOT / "build/mutate"
BACKENDS = {"cpp": "cpu", "triton": "triton", "python": "cpu,reference"}
# what would take long under kernels that are not optimised comes from other tests too
CHOSEN = {"cpp": ["-k", "cpu and not large and not 50_runs and not memory"]}
LIMIT = 900  # seconds of one mutation's tests


def tree(kind: str) -> Path:
    """Where the faults of a kind are planted."""
    return FOLDER / kind / "checkout"


def copy_checkout(kind: str) -> None:
    """Make the copy that faults are planted in, with the compiled module of this checkout."""
    folder = tree(kind)
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    ).split("\n")
    modules = [str(x.relative_to(ROOT)) for x in (ROOT / "swav_kernels").glob("_C*.so")]
    for name in filter(None, listed + modules):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # with a new time: what was built of a fault that an ended run left is built again
        shutil.copy(ROOT / name, folder / name)
    (folder / "sitecustomize.py").write_text(SITE)


def compile_kernels() -> None:
    """Build the copy's kernels, of one instruction set and not optimised: a few seconds each."""
    module = build(
        tree("cpp"), FOLDER / "build", "_C", SWAV_INSTRUCTION_SETS="generic", SWAV_OPTIMIZE="-O0"
    )
    shutil.copy(module, tree("cpp") / "swav_kernels")


def run_tests(kind: str, tests: list[str]) -> tuple[int, str]:
    """Exit status and output of pytest in a process of its own, which looks at shapes first."""
    environment = environment_of(
        tree(kind),
        SWAV_MUTATION_BACKENDS=BACKENDS[kind],
        SWAV_MUTATION_SHAPES=str(FOLDER / kind / "shapes.json"),
        PYTHONDONTWRITEBYTECODE="1",  # a fault of the same second and length would go unseen
        **({"TRITON_INTERPRET": "1"} if kind == "triton" else {}),
    )
    folder = tree(kind)
    paths = [str(x) for x in (folder, folder / "python", folder / "tools")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    options = ["-x", "-p", "keeps_shapes", "--tb=line", *CHOSEN.get(kind, [])]
    output = FOLDER / kind / "output"
    child = os.fork()  # torch, which this process has imported, is half of a run's time
    if child == 0:
        os.dup2(os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = paths
        exec(SITE)
        os.chdir(folder)
        status = int(pytest.main([*in_checkout(folder), *options, *located(folder, tests)]))
        sys.stdout.flush()
        os._exit(status)
    stop = time.monotonic() + LIMIT
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > stop:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    return os.waitstatus_to_exitcode(ended[1]), output.read_text()


def find(mutation: Mutation) -> str:
    """The test that finds the fault, or "" and a word on why not."""
    before = mutation.apply(tree(mutation.kind))
    path = tree(mutation.kind) / mutation.file
    try:
        if mutation.kind == "cpp":
            compile_kernels()
        status, text = run_tests(mutation.kind, [f"tests/test_{x}.py" for x in mutation.tests])
    finally:
        path.write_text(before)
    failed = re.search(r"^FAILED [./]*(.+?)(?: - .*)?$", text, re.MULTILINE)
    if status == 1 and failed:
        return failed[1]
    reason = {0: "all tests pass", DIFFERENT: text.rstrip().rpartition("\n")[2]}
    print(f"    {reason.get(status, text[-2000:])}", flush=True)
    return ""


def prepare(kind: str) -> None:
    """Make the copy, and note the shapes on the code as it is."""
    copy_checkout(kind)
    if kind == "cpp":
        compile_kernels()
    (FOLDER / kind / "shapes.json").unlink(missing_ok=True)
    _, text = run_tests(kind, ["tests/test_sinkhorn.py", "--collect-only"])
    if not (FOLDER / kind / "shapes.json").exists():
        sys.exit(f"tools/mutate.py: the ops do not run:\n{text}")


def keep(kind: str, found: dict[str, str]) -> None:
    """Add to what is known of a kind, and write the table of all that is known."""
    known: dict[str, str] = {}
    for other in KINDS:
        file = FOLDER / other / "found.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        if other == kind:
            old |= found
            part = file.with_suffix(".part")
            part.write_text(json.dumps(old, indent=1))
            part.replace(file)  # at once: a list beside this one may read it
        known |= old
    write_table(known)


def main() -> None:
    """Plant and look, then check that the tests which found faults pass without them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wanted", nargs="*", help="cpp, triton, python, or KIND/NAME; all if none")
    wanted = parser.parse_args().wanted or list(KINDS)
    started = time.monotonic()
    survivors = []
    for kind in KINDS:
        chosen = [m for m in load(kind) if m.id in wanted or kind in wanted]
        if not chosen:
            continue
        prepare(kind)
        found = {}
        for mutation in chosen:
            killer = find(mutation)
            print(f"{mutation.id}: {killer or 'NOT FOUND'}", flush=True)
            found[mutation.id] = killer
            keep(kind, found)
            if not killer:
                survivors.append(mutation.id)
        if kind == "cpp":
            compile_kernels()
        killers = sorted({found[m.id] for m in chosen} - {""})
        status, text = run_tests(kind, killers) if killers else (0, "")
        if status != 0:
            sys.exit(f"tools/mutate.py: these must pass on the code as it is:\n{text[-3000:]}")
    seconds = time.monotonic() - started
    print(f"{len(survivors)} not found {survivors}, {seconds:.0f} s")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
