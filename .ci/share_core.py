"""Lend a virtual environment torch, numpy and what they need, from the one that runs this script.

As links, in a second: the environment holds what `pip install <wheel>` would bring, and no more.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

CORE = ("torch", "numpy")


def closure(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """Return the installed distributions that these names need, themselves included."""
    found: dict[str, importlib.metadata.Distribution] = {}
    queue = list(names)
    while queue:
        name = re.split(r"[^\w.-]", queue.pop())[0].lower().replace("_", "-")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # its marker excludes it here
        if name not in found:
            found[name] = distribution
            queue += [r for r in distribution.requires or [] if "extra ==" not in r]
    return found


purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
target = Path(
    subprocess.check_output(
        [Path(sys.argv[1]) / "bin" / "python", "-c", purelib], text=True
    ).strip()
)
distributions = closure(CORE)
for distribution in distributions.values():
    root = Path(str(distribution.locate_file("")))
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        if not (target / top).exists():
            (target / top).symlink_to(root / top)
print("lent:", ", ".join(sorted(distributions)))
