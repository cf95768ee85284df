"""`swav lint`: what it finds in small programs, and what it makes of trees that are odd."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import CASES, FEATURES, MODEL, OF_RANKS, REDUCED, sinkhorn
from swav_trainer import cli, lint
from swav_trainer.lint.files import read_tree
from swav_trainer.lint.rules import RULES

BAD = [(rule, text) for rule, (bad, _) in CASES.items() for text in bad]
GOOD = [text for _, good in CASES.values() for text in good]


def found_in(path: Path) -> list[tuple[str, int, str]]:
    """File name, line and rule of each finding."""
    modules, _ = read_tree(str(path))
    return [(Path(path).name, line, rule) for path, line, rule in lint.findings(modules)]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_every_rule_has_its_cases() -> None:
    assert CASES.keys() == RULES.keys()
    for bad, good in CASES.values():
        assert len(bad) >= 3
        assert len(good) >= 2


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_defects_are_found_at_their_lines(rule: str, text: str, tmp_path: Path) -> None:
    lines = [n for n, line in enumerate(text.splitlines(), 1) if "# here" in line]
    wanted = [("code.py", line, rule) for line in lines]
    assert found_in(write(tmp_path, code=text)) == wanted != []


@pytest.mark.parametrize("text", GOOD)
def test_sound_code_has_no_findings(text: str, tmp_path: Path) -> None:
    assert found_in(write(tmp_path, code=text)) == []


# --- files together -----------------------------------------------------------------------------


def test_ranks_of_another_file(tmp_path: Path) -> None:
    local = sinkhorn("Q = torch.exp(out / eps).t()")
    train = "from losses.codes import sinkhorn\ntorch.distributed.init_process_group('nccl')\n"
    folder = write(tmp_path, codes=local, train=train, other=local.replace("def ", "def other_"))
    assert found_in(folder) == [("codes.py", 6, "sums-per-rank")]  # nobody shares other.py
    package = write(tmp_path / "losses", __init__=local)
    (tmp_path / "codes.py").unlink()
    assert found_in(tmp_path) == [("__init__.py", 6, "sums-per-rank")]
    (package / "__init__.py").write_text(
        OF_RANKS + local.replace(local[local.index("\n    for") :], REDUCED)
    )
    assert found_in(tmp_path) == []


def test_lengths_of_another_file(tmp_path: Path) -> None:
    step = "def normalize_prototypes(model):\n    pass\n\nnormalize_prototypes(model)\n"
    assert len(found_in(write(tmp_path, model=FEATURES))) == 1
    assert found_in(write(tmp_path, step=step)) == []
    backbone = "from torch import nn\n\ndef embed(x):\n    return nn.functional.normalize(x)\n"
    model = MODEL.replace("import torch\n", "import torch\nfrom backbones import embed\n")
    write(tmp_path, model=model)
    assert found_in(tmp_path) == [("model.py", 14, "not-normalised")]
    write(tmp_path, backbones=backbone)
    assert found_in(tmp_path) == []


# --- the command --------------------------------------------------------------------------------


def test_findings_say_where_why_and_what_to_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, head="prototypes = nn.Linear(128, 3000)\n") / "head.py"
    for path in (tmp_path, file):
        assert cli.main(["lint", str(path)]) == 1
        said = capsys.readouterr().out
        assert f"{file}:1: [biased-prototypes] a bias on the prototypes" in said
        assert "use swav_kernels.Prototypes(dim, num_prototypes)" in said
        assert "findings: 1, Python files: 1" in said


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint", str(write(tmp_path, a="x = 1\n"))]) == 0
    assert "findings: 0, Python files: 1" in capsys.readouterr().out
    assert cli.main(["lint", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(rule in said for rule in RULES)
    for arguments in ([], ["a", "b"], ["--fix"], [str(tmp_path / "missing")]):
        assert cli.main(["lint", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("swav: lint")
        assert error.count("\n") == 1


def test_odd_files_are_passed_over_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "code", good="prototypes = nn.Linear(4, 3)\n", old="print 'x'\n")
    (folder / "null.py").write_bytes(b"x = 1\0")
    (folder / "bytes.py").write_bytes(b"x = '\xff'")
    (folder / "cookie.py").write_bytes(b"# coding: nothing\nx = 1\n")
    (folder / "deep.py").write_text("(" * 5000 + ")" * 5000)
    (folder / "self.py").symlink_to("self.py")
    (folder / "gone.py").symlink_to("nowhere.py")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    os.symlink(b"\xff\n", os.fsencode(folder) + b"/\xff\n.py")
    write(folder / ".git", hidden="prototypes = nn.Linear(4, 3)\n")
    assert cli.main(["lint", str(folder)]) == 1
    out, notes = capsys.readouterr()
    assert "findings: 1, Python files: 1" in out
    for name in ("old", "null", "bytes", "cookie", "deep", "self", "gone", "pipe"):
        assert f"passed over {folder}/{name}.py: " in notes
    assert f"passed over {folder}/loop: a link to a folder that was read already" in notes
    assert notes.count("\n") == 10  # a line each, whatever a name holds
    assert "old.py: not Python 3, line 1" in notes


def test_a_link_to_a_folder_elsewhere_is_read(tmp_path: Path) -> None:
    write(tmp_path / "shared", head="prototypes = nn.Linear(4, 3)\n")
    folder = write(tmp_path / "code", a="x = 1\n")
    (folder / "link").symlink_to(tmp_path / "shared", target_is_directory=True)
    assert found_in(folder) == [("head.py", 1, "biased-prototypes")]


def test_code_is_not_run_and_torch_is_not_needed(tmp_path: Path) -> None:
    write(tmp_path, evil="import pathlib\npathlib.Path('ran').touch()\nx = '\\d'\n")
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom swav_trainer import cli\n"
        "sys.exit(cli.main(['lint', '.']))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
