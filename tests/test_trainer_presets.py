"""The presets: what they say of themselves, and that each one trains."""

import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from swav_trainer import cli, data, optim
from swav_trainer.engine import Trainer
from swav_trainer.errors import TrainerError
from swav_trainer.settings import about, load, load_preset, preset_names

PUBLISHED = {  # per cent of a linear probe on ImageNet
    "swav_100ep": 72.1, "swav_200ep": 73.9, "swav_400ep": 74.6, "swav_800ep": 75.3,
    "swav_200ep_bs256": 72.7, "swav_400ep_bs256": 74.3, "swav_400ep_2x224": 70.1,
    "swav_w2_400ep": 77.3, "swav_w4_400ep": 77.9, "deepcluster_400ep": 74.3,
    "deepcluster_800ep": 75.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small pictures."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f"{i}.png"), pixels)
    return folder


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_two_steps(name: str, colours: Path, tmp_path: Path) -> None:
    """At a reduced width: its optimiser, crops, queue, heads and method are its own."""
    preset = load_preset(name)
    settings = dataclasses.replace(
        preset, epochs=1, batch_size=8, num_prototypes=8, workers=1, width=2, arch="small",
        hidden_dim=min(16, preset.hidden_dim), freeze_steps=1, rate_images=0,
        queue_length=8 * bool(preset.queue_length), queue_epoch=0, queue_start=0.0,
        crops=re.sub(r"x(\d+)", lambda size: f"x{max(4, int(size[1]) // 7)}", preset.crops),
        data=f"folder:{colours}" if preset.data == "folder:" else preset.data,
    )  # fmt: skip
    trainer = Trainer(settings, data.load(settings), tmp_path)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.model.train()
    steps = trainer._steps(0, 0)
    for _ in range(2):
        loss, stats = next(steps)
        trainer.step += 1
        assert torch.isfinite(loss)
        assert 0 <= float(stats["usage_entropy"]) <= 1
    moved = [not torch.equal(x, y) for x, y in zip(before, trainer.model.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    notes = about(name)
    assert notes["source"]
    if name in PUBLISHED:
        assert notes["expected"].startswith(f"{PUBLISHED[name]} % ")
        assert "not measured here" in notes["expected"]
    assert cli.main(["presets", name]) == 0
    text = capsys.readouterr().out
    assert notes["source"] in text
    assert "crops = " in text


def test_a_printed_preset_is_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "swav_w4_400ep"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out.split("\n\n", 1)[1])
    assert load(tmp_path / "mine.toml") == load_preset("swav_w4_400ep")


def test_the_recipes_are_the_papers() -> None:
    recipe = load_preset("swav_400ep")
    assert (recipe.epsilon, recipe.temperature, recipe.iterations) == (0.05, 0.1, 3)
    assert (recipe.num_prototypes, recipe.feature_dim, recipe.hidden_dim) == (3000, 128, 2048)
    assert optim.peak(recipe) == 4.8
    assert optim.learning_rate(0, 1000, recipe) == pytest.approx(0.3, rel=0.6)
    assert optim.learning_rate(1000, 1000, recipe) == pytest.approx(0.0048)
    assert recipe.warmup * recipe.epochs == 10
    small = load_preset("swav_200ep_bs256")
    assert (small.queue_length, small.queue_epoch, small.freeze_steps) == (3840, 15, 5005)
    assert optim.peak(small) == 0.6


def test_a_preset_may_build_on_another_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "swav_400ep"\nepochs = 7\n')
    assert load(path) == dataclasses.replace(load_preset("swav_400ep"), epochs=7)
    assert cli.main(["presets", str(path)]) == 0
    path.write_text('base = "swav_40ep"\n')
    with pytest.raises(TrainerError, match="unknown preset 'swav_40ep'.*did you mean 'swav_400ep'"):
        load(path)


def test_wrong_calls_of_presets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert cli.main(["presets", "digits", "folder"]) == 2
    assert cli.main(["train", "--preset", "swav_400ep"]) == 2
    assert "the preset swav_400ep needs --data folder:PATH" in capsys.readouterr().err
    assert cli.main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())


def test_lars_may_treat_vectors_as_matrices() -> None:
    """LARC without clipping, by hand: trust |w| / (|g| + decay |w|) (g + decay w)."""
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    w.grad = torch.tensor([0.6, 0.8])
    groups = [{"params": [w], "weight_decay": 0.1}]
    optim.Lars(groups, lr=2.0, momentum=0.9, trust=0.001, vectors=True).step()
    rate = 0.001 * 5 / (1 + 0.1 * 5)
    wanted = torch.tensor([3.0, 4.0]) - 2 * rate * torch.tensor([0.6 + 0.3, 0.8 + 0.4])
    torch.testing.assert_close(w.detach(), wanted)
