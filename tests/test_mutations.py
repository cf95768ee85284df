"""The lists of planted faults fit the code; tools/mutate.py plants them and runs the tests."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from mutations import FOLDER, KINDS, Mutation, load  # noqa: E402

ALL = [mutation for kind in KINDS for mutation in load(kind)]
PLACES = {"cpp": "csrc/", "triton": "swav_kernels/triton_kernels/", "python": "swav_kernels/"}
LEAST, LEAST_OF_A_KIND = 40, 12


def test_there_are_enough_of_every_kind() -> None:
    assert len(ALL) >= LEAST
    for kind in KINDS:
        assert sum(mutation.kind == kind for mutation in ALL) >= LEAST_OF_A_KIND
    assert len({mutation.id for mutation in ALL}) == len(ALL)


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.id)
def test_a_mutation_fits_the_code(mutation: Mutation, tmp_path: Path) -> None:
    assert mutation.file.startswith(PLACES[mutation.kind])
    assert mutation.kind == "triton" or PLACES["triton"] not in mutation.file
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    text = (ROOT / mutation.file).read_text()
    copy.write_text(text)
    assert mutation.apply(tmp_path) == text
    assert copy.read_text() != text
    for name in mutation.tests:
        assert (ROOT / f"tests/test_{name}.py").is_file()


def test_a_text_that_is_gone_or_twice_there_is_refused(tmp_path: Path) -> None:
    mutation = Mutation("python", "x", "y", "code.py", "a = 1", "a = 2", [])
    for text, count in (("b = 1\n", 0), ("a = 1\na = 1\n", 2)):
        (tmp_path / "code.py").write_text(text)
        with pytest.raises(ValueError, match=rf"python/x: code\.py .* {count} times"):
            mutation.apply(tmp_path)


def test_the_table_says_what_found_each() -> None:
    table = (FOLDER / "RESULT.md").read_text()
    rows = [
        line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "/" in line
    ]
    assert {row[0].removeprefix("| ") for row in rows} <= {m.id for m in ALL}
    assert len(rows) >= LEAST_OF_A_KIND
    for row in rows:
        file = row[-1].removeprefix("`").partition("::")[0]
        assert (ROOT / "tests" / file).is_file(), row
