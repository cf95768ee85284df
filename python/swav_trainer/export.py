"""`swav export`: a run's backbone for other libraries."""

import logging
import warnings
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from swav_trainer import layouts, released, saved, weights
from swav_trainer.config import Config
from swav_trainer.errors import TrainerError, printable, require
from swav_trainer.opened import File, Run, load_settings, own_images, write_file


def export(
    run: Run,
    file: File,
    layout: Literal["torchvision", "timm", "detectron2", "detr", "onnx"] | None = None,
) -> None:
    """Write the backbone's weights, a ResNet's under torchvision's names unless told otherwise.

    `torchvision.models.resnet50(weights=None).load_state_dict(..., strict=False)` takes them; only
    the classifier is missing. The weights want images of values from 0 to 1, those of an imported
    run normalised as ImageNet's are; the ONNX file always takes values from 0 to 1. Detectron2
    reads the .pth file as MODEL.WEIGHTS: FILE.pth?matching_heuristics=True.

    Args:
        run: folder of a run.
        file: .safetensors file, .pth for torch.load, or .onnx.
        layout: whose names the weights take; without it they keep the network's own.
    """
    settings = load_settings(run)
    if layout == "onnx":
        _write_onnx(settings, run, file)
        return
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise TrainerError(
            "export writes .safetensors or .pth files, and .onnx with --layout onnx, got "
            f"{printable(file.name)}"
        )
    tensors, problem = weights.of_run(run, settings)
    if problem:
        print(problem)
    network = _network(settings)
    if layout is not None:
        tensors = layouts.convert(tensors, layout, network)
    if file.suffix == ".safetensors":
        write_file(file, lambda: save_file(tensors, file, metadata={"arch": network}))
    else:
        content = {"model": tensors} if layout in layouts.INSIDE_MODEL else tensors
        write_file(file, lambda: torch.save(content, file))
    print(f"{len(tensors)} tensors of {network}: {printable(file)}")


def _network(settings: Config) -> str:
    """Name of the architecture, or of the user's network."""
    return settings.arch if released.is_released(settings) else settings.model or settings.arch


def _write_onnx(settings: Config, run: Path, file: Path) -> None:
    """Write the backbone as a graph from images [batch, C, S, S] to features [batch, dim]."""
    if file.suffix != ".onnx":
        raise TrainerError(f"--layout onnx writes a .onnx file, got {printable(file.name)}")
    require("onnx", "onnxscript", extra="onnx")
    channels, size = own_images(settings)
    model, problem = saved.trained(run, settings, channels, torch.device("cpu"))
    if problem:
        print(problem)
    images = torch.rand(2, channels, size, size)  # a batch of one would be taken for a constant
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which libraries it lacks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.backbone.float().eval(), (images,), dynamo=True, verbose=False,
                input_names=["images"], output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except Exception as error:  # it may be the user's network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise TrainerError(
            f"{_network(settings)} cannot be written as ONNX: {type(error).__name__}: {reason}"
        ) from error
    write_file(file, lambda: program.save(file))
    print(f"{_network(settings)} on images [batch, {channels}, {size}, {size}]: {printable(file)}")
