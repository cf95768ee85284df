"""Docstrings are written to be read as they are: a `|` in their prose is an absolute value."""

import re
from typing import Any

_CODE = re.compile(r"(`+[^`]+`+)")


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    for row, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            continue
        parts = _CODE.split(line)  # prose and code in turn
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[row] = "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Run after napoleon has made the sections."""
    app.connect("autodoc-process-docstring", _escape, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
