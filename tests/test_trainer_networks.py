"""Backbones: recomputed, compiled, transformers, and those of libraries."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_runs import SMALL, first_loss
from swav_trainer.errors import TrainerError
from swav_trainer.model import Model
from swav_trainer.networks.resnet import RESNETS, ResNet, Sampled
from swav_trainer.settings import load_preset
from torch import Tensor, nn


def gradients(settings, images: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Model(settings, 3).double().train()
    torch.manual_seed(1)  # of dropout
    model(images).square().sum(0)[::2].sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], model.state_dict()


def of_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("arch", ["small", "resnet18", "vit_s16", "yours"])
def test_recomputing_changes_nothing(arch: str) -> None:
    """Neither gradients nor batch norms' statistics, which see each sample once."""
    settings = dataclasses.replace(
        load_preset("folder"), arch="small" if arch == "yours" else arch, hidden_dim=8,
        crops="2x32",
        model=f"{__name__}:of_dropout" if arch == "yours" else "", areas=((0.5, 1),),
    )  # fmt: skip
    images = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()]
    kept, state = gradients(settings, images)
    again, state_again = gradients(dataclasses.replace(settings, recompute=True), images)
    assert len(kept) > 5
    for x, y in zip([*kept, *state.values()], [*again, *state_again.values()], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_a_resnet_for_small_images_keeps_their_pixels() -> None:
    network = ResNet(*RESNETS["resnet18_cifar"])
    sides: list[int] = []
    for stage in (network.layer1, network.layer4):
        stage.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert sides == [32, 8]  # the usual beginning leaves 8 and 2
    # as published: 11.17 million with the classifier of 5130
    assert sum(p.numel() for p in network.parameters()) == 11_173_962 - 5130


def test_a_strided_convolution_of_few_channels_is_torchs() -> None:
    """Whose own, where channels lie together, is not safe for fewer than 8 of them."""
    shortcut = Model(SMALL, 1).backbone.blocks[0].downsample[0]
    assert type(shortcut) is Sampled
    assert (shortcut.in_channels, shortcut.stride) == (4, (2, 2))
    assert type(Model(load_preset("digits"), 1).backbone.blocks[0].downsample[0]) is nn.Conv2d
    ours = Sampled(3, 5, 2).double()
    torchs = nn.Conv2d(3, 5, 1, 2, bias=False).double()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 9, 12, dtype=torch.float64)
    ways = []
    for module, memory in ((ours, torch.channels_last), (torchs, torch.contiguous_format)):
        images = x.clone(memory_format=memory).requires_grad_()
        y = module(images)
        y.square().sum().backward()
        ways.append((y.detach(), images.grad, module.weight.grad))
    assert ways[0][0].shape == (4, 5, 5, 6)
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_recomputing_keeps_less(tmp_path: Path) -> None:
    def held(recompute: bool) -> int:
        settings = dataclasses.replace(
            load_preset("folder"), arch="vit_s16", recompute=recompute, crops="2x32",
            areas=((0.5, 1),),
        )  # fmt: skip
        model, saved = Model(settings, 3).train(), []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel() * (tensor.grad_fn is not None))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model([torch.randn(8, 3, 32, 32)])
        return sum(saved)

    assert held(True) < held(False) / 3


def test_a_transformer_sees_crops_of_other_sizes() -> None:
    settings = dataclasses.replace(
        load_preset("folder"), arch="vit_s16", crops="2x64+1x32", areas=((0.5, 1), (0.1, 0.5))
    )
    model = Model(settings, 3).eval()
    names = set(model.backbone.state_dict())  # timm's
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.attn.qkv.bias"} <= names
    assert sum(p.numel() for p in model.backbone.parameters()) == pytest.approx(21.6e6, rel=0.01)
    images = torch.randn(2, 3, 64, 64)
    assert model([images, images[..., :32, :32]]).shape == (4, settings.feature_dim)
    # a place is told from another one
    swapped = torch.cat([images[..., 16:32], images[..., :16], images[..., 32:]], 3)
    assert not torch.allclose(model.backbone(images), model.backbone(swapped), atol=1e-4)
    with pytest.raises(TrainerError, match="patches of 16 pixels, crops 2x12 are smaller"):
        Model(dataclasses.replace(settings, crops="2x12", areas=((0.5, 1),)), 3)


def test_networks_of_libraries_lose_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, torchvision, models = (ModuleType(x) for x in ("timm", "torchvision", "models"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 1000)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean((2, 3)))

    asked = []
    timm.create_model = lambda name, num_classes: asked.append((name, num_classes)) or _Pool()
    models.get_model = lambda name, weights: asked.append((name, weights)) or Net()
    for name, module in {
        "timm": timm, "torchvision": torchvision, "torchvision.models": models,
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    for model in ("timm:tiny", "torchvision:tiny"):
        settings = dataclasses.replace(load_preset("folder"), model=model)
        assert Model(settings, 3).head[0].in_features == 3
    assert asked == [("tiny", 0), ("tiny", None)]


def test_a_library_that_does_not_import_is_named() -> None:
    with pytest.raises(TrainerError, match="no_such_library cannot be imported .*PYTHONPATH"):
        Model(dataclasses.replace(SMALL, model="no_such_library:net"), 1)


def test_a_compiled_backbone_learns_the_same(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, dtype="float64", crops="2x16", areas=((0.5, 1),))
    compiled = dataclasses.replace(settings, compile=True)
    trainer, _, loss = first_loss(compiled, tmp_path)
    assert trainer.model.backbone._compiled_call_impl is not None
    torch.testing.assert_close(loss, first_loss(settings, tmp_path)[2], rtol=1e-9, atol=1e-9)
