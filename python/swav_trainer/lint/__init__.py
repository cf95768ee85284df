"""`swav lint PATH`: finds the known defects of home-grown Sinkhorns and prototypes in Python code.

Code is parsed, never imported.
"""

import sys
from collections.abc import Sequence

from swav_trainer.errors import TrainerError
from swav_trainer.lint import prototypes, sinkhorns
from swav_trainer.lint.files import Module, read_tree
from swav_trainer.lint.rules import RULES, Finding

USAGE = """\
usage: swav lint PATH

Reads the Python files of a folder (or one file) without importing them, and reports what breaks
SwAV in silence, each with file:line, why, and the call that replaces it:

"""


def main(arguments: Sequence[str]) -> int:
    """Print the findings; returns 1 if there are any, 0 if there are none."""
    if list(arguments) in (["-h"], ["--help"]):
        print(USAGE + "\n".join(f"  {name:16} {rule.title}" for name, rule in RULES.items()))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        got = " ".join(arguments) or "nothing"
        raise TrainerError(f"lint takes one PATH, a folder or a Python file; got {got}")
    modules, notes = read_tree(arguments[0])
    for note in notes:
        print(f"swav lint: {note}", file=sys.stderr)
    found = findings(modules)
    for finding in found:
        print(_text(finding))
    print(f"findings: {len(found)}, Python files: {len(modules)}")
    return 1 if found else 0


def findings(modules: Sequence[Module]) -> list[Finding]:
    """All findings in the order of files and lines, each once."""
    return sorted({*sinkhorns.findings(modules), *prototypes.findings(modules)})


def _text(finding: Finding) -> str:
    rule = RULES[finding.rule]
    return f"{finding.path}:{finding.line}: [{finding.rule}] {rule.why}\n    use {rule.use}"
