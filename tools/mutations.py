"""The planted faults of `tests/mutations`, and the table of what found them."""

from dataclasses import dataclass
from pathlib import Path

from checkout import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

FOLDER = ROOT / "tests/mutations"
KINDS = ("cpp", "triton", "python")


@dataclass(frozen=True)
class Mutation:
    """One fault: in `file`, `old`, which occurs there once, becomes `new`."""

    kind: str
    name: str
    fault: str  # what is then wrong
    file: str
    old: str
    new: str
    tests: list[str]  # the files tests/test_<name>.py that must find it, the likeliest first

    @property
    def id(self) -> str:
        """Its name among all of them."""
        return f"{self.kind}/{self.name}"

    def apply(self, checkout: Path) -> str:
        """Plant the fault in a copy of the checkout; returns the text before."""
        path = checkout / self.file
        text = path.read_text()
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.id}: {self.file} must hold the old text once, but does so {count} times; "
                f"follow the code in tests/mutations/{self.kind}.toml"
            )
        path.write_text(text.replace(self.old, self.new))
        return text


def load(kind: str) -> list[Mutation]:
    """All mutations of a kind."""
    table = tomllib.loads((FOLDER / f"{kind}.toml").read_text())
    return [Mutation(kind=kind, **entry) for entry in table["mutation"]]


def write_table(killers: dict[str, str]) -> None:
    """Write RESULT.md from the test that found each mutation, by its id; "" for a survivor."""
    listed = [m for kind in KINDS for m in load(kind)]
    mutations = [m for m in listed if m.id in killers]
    killed = sum(bool(killers[m.id]) for m in mutations)
    lines = [
        "# Planted faults, and the test that found each",
        "",
        f"{killed} of {len(mutations)} found. Made by `python tools/mutate.py`, which tells how; "
        f"{len(listed) - len(mutations)} more are in the lists and were not planted in these runs.",
        "",
        "| mutation | in | then | found by |",
        "|---|---|---|---|",
        *(
            f"| {m.id} | `{m.file}` | {m.fault} | "
            + (f"`{killers[m.id].removeprefix('tests/')}` |" if killers[m.id] else "nothing |")
            for m in mutations
        ),
    ]
    (FOLDER / "RESULT.md").write_text("\n".join(lines) + "\n")
