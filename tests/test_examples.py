"""The examples run, and their losses fall."""

import importlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from depth import DEEP, count

import swav_kernels as sk

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EPOCHS = count(2, 15)
LOG_K = math.log(30)
# what the notebook's first cell may hold too
SMALL = """
from sklearn.datasets import load_digits

options = ["--preset", "digits", "--epochs", "2", "--width", "8"]
images, true_labels = load_digits().images, load_digits().target
"""
# lightly from outside; its own Sinkhorn fails, so whatever trains is ours
LIGHTLY = {
    "lightly/__init__.py": "",
    "lightly/loss/__init__.py": "from lightly.loss.swav_loss import SwaVLoss\n",
    "lightly/loss/swav_loss.py": '''
import torch

def sinkhorn(out, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False):
    raise AssertionError("the Sinkhorn is not replaced")

class SwaVLoss(torch.nn.Module):
    def __init__(self, temperature=0.1, sinkhorn_epsilon=0.05):
        super().__init__()
        self.temperature, self.epsilon = temperature, sinkhorn_epsilon

    def forward(self, large, small):
        every, losses = [*large, *small], []
        for i, scores in enumerate(large):
            codes = sinkhorn(scores.detach(), epsilon=self.epsilon)
            for v, other in enumerate(every):
                if v != i:
                    log_p = torch.log_softmax(other / self.temperature, 1)
                    losses.append(-(codes * log_p).sum(1).mean())
        return torch.stack(losses).mean().unsqueeze(0)
''',
    "lightly/models/__init__.py": "",
    "lightly/models/modules.py": '''
from torch import nn
from torch.nn.functional import normalize

class SwaVProjectionHead(nn.Sequential):
    def __init__(self, input_dim, hidden_dim, output_dim):
        super().__init__(nn.Linear(input_dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(),
                         nn.Linear(hidden_dim, output_dim))

class SwaVPrototypes(nn.Module):
    def __init__(self, input_dim, n_prototypes):
        super().__init__()
        self.layers = nn.Linear(input_dim, n_prototypes, bias=False)

    def normalize(self):
        self.layers.weight.data = normalize(self.layers.weight.data, dim=1)

    def forward(self, x, step=None):
        return self.layers(x)
''',
}  # fmt: skip


@pytest.fixture(autouse=True)
def from_the_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples import `digits` from beside them; nothing of them or of lightly stays imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sk.unpatch()
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    for name in [n for n in sys.modules if n in names or n.partition(".")[0] == "lightly"]:
        del sys.modules[name]


def check(printed: str) -> None:
    """The loss falls, below that of codes that say nothing."""
    losses = [float(loss) for loss in re.findall(r"epoch \d+: loss (\d+\.\d+)", printed)]
    assert len(losses) == EPOCHS
    assert losses[-1] < losses[0]
    assert losses[-1] < LOG_K


@pytest.mark.parametrize("name", ["digits_loop", "dino_digits"])
def test_a_loop(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = importlib.import_module(name).main(epochs=EPOCHS)
    check(capsys.readouterr().out)
    if DEEP and name == "digits_loop":
        assert after > before + 5  # 88.0 and 97.3 were seen


def test_lightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in LIGHTLY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    main = importlib.import_module("lightly_swav").main
    assert "lightly.loss.swav_loss.sinkhorn is replaced" in capsys.readouterr().out
    main(epochs=EPOCHS)
    check(capsys.readouterr().out)


def test_fabric() -> None:
    ran = subprocess.run(
        [sys.executable, "fabric_swav.py", str(count(1, 2)), str(EPOCHS)],
        cwd=EXAMPLES, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    check(ran.stdout)
    assert "balances only its own rows" not in ran.stderr


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
def test_the_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells in order; on smaller images unless the full count is asked for."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, object] = {"__name__": "notebook"}
    cells = json.loads((EXAMPLES / "mnist5k.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code[0]["metadata"]["tags"] == ["parameters"]
    for cell in code:
        text = "".join(cell["source"])
        is_small = cell is code[0] and not DEEP
        exec(compile(SMALL if is_small else text, "mnist5k.ipynb", "exec"), namespace)
    printed = capsys.readouterr().out
    (purity,) = re.findall(r"purity (\d+\.\d)%", printed)
    assert float(purity) > count(25, 80)  # of ten labels, drawn at random: not much above 10
    images, table = namespace["images"], namespace["table"]
    labels = namespace["true_labels"]
    assert len(images) == len(table) == len(labels)
    assert (labels[table["name"]] == table["class"]).all()  # pictures are those of the rows
