"""What the pages of README and docs hold: fences, commands, links, names of tests."""

import contextlib
import io
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "docs" / "results"  # by the build, of measured results
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if MADE not in path.parents),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]
FENCE = re.compile(r"^(`{3,})(\{?[\w-]*\}?)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"(?<![\w/-])(?:\.venv/bin/)?"
    r"(swav [a-z]+|python -m benchmarks(?:\.\w+)?|-m swav_trainer [a-z]+)(?![\w-])([^`\n;|&#]*)"
)
NODE = re.compile(r"(tests/test_\w+\.py)::(\w+)")
LINK = re.compile(r"!?\[[^]\n]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
CODE = re.compile(r"`([^`\n]+)`")


class Fence(NamedTuple):
    """A fenced block of a page: `python`, `bash`, `diff`, or a directive `{...}`."""

    page: str
    line: int
    language: str
    text: str


def fences(language: str) -> list[Fence]:
    """All pages' blocks of a language."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in FENCE.finditer(text):
            if block[2] == language:
                line = text.count("\n", 0, block.start()) + 1
                found.append(Fence(str(page.relative_to(ROOT)), line, language, block[3]))
    return found


def commands() -> Iterator[tuple[Path, str, str]]:
    """Page, command (`swav train`, `python -m benchmarks`) and what follows it on its line."""
    for page in PAGES:
        for found in COMMAND.finditer(page.read_text()):
            yield page, found[1].replace("-m swav_trainer", "swav"), found[2]


def inline_code(page: Path) -> list[str]:
    """What stands in single backticks outside of fenced blocks."""
    return CODE.findall(FENCE.sub("", page.read_text()))


@cache
def help_of(command: str) -> str:
    """What `swav COMMAND --help` or `python -m benchmarks... --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        if command.startswith("swav "):
            from swav_trainer import cli  # the libraries of the trainer's extra

            cli.main([command.removeprefix("swav "), "--help"])
        else:
            module = command.removeprefix("python -m ")
            with mock.patch.object(sys, "argv", [module, "--help"]), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # it may be imported already
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    return printed.getvalue()
