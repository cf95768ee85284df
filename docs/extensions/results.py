"""A page for every measured result: `results/<file>/benchmarks.md`, made by `benchmarks.page`."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def _write(app: Any) -> None:
    sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package
    from benchmarks import page

    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        folder = Path(app.srcdir) / "results" / path.stem
        if not (folder / page.NAME).exists() or (
            (folder / page.NAME).stat().st_mtime < path.stat().st_mtime
        ):
            page.write(json.loads(path.read_text()), folder)


def setup(app: Any) -> dict[str, bool]:
    """Before the pages are looked for."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
