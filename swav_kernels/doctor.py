"""`doctor()`: what can run here, why the rest cannot, and a quick proof that it computes right."""

import os
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from swav_kernels import dispatch
from swav_kernels.ops.prototype_distillation_loss import prototype_distillation_loss
from swav_kernels.ops.prototype_scores import prototype_scores
from swav_kernels.ops.sinkhorn import sinkhorn
from swav_kernels.ops.swapped_cross_entropy import swapped_cross_entropy
from swav_kernels.ops.swav_loss import swav_loss

TOLERANCE = 1e-5  # the self-test's inputs are cosines at epsilon 0.05


class Report(str):
    """The text of `doctor()`; `ok` tells whether every self-test passed."""

    ok: bool = True


def doctor() -> Report:
    """Report versions, backends and why not, and test each op against the reference.

    Returns:
        A text to print; its attribute `ok` is False if any self-test failed. Takes about a second.

    Example:
        >>> doctor().ok
        True
    """
    from swav_kernels import __version__

    ok = True
    lines = [
        f"swav_kernels {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads",
    ]
    lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    wanted = os.environ.get(dispatch.ENVIRONMENT_VARIABLE, "auto")
    if wanted != "auto":
        known = wanted in dispatch.BACKENDS
        reason = dispatch.why_not(wanted) if known else "no such backend"
        ok = reason is None
        lines.append(
            f"{dispatch.ENVIRONMENT_VARIABLE}={wanted}" + (f": {reason}" if reason else "")
        )
    for name, backend in dispatch.BACKENDS.items():
        reason = backend.missing()
        if reason is not None:
            lines.append(f"backend {name:<10} no: {reason}")
            continue
        tests = {op: _self_test(name, op) for op in backend.ops}
        ok = ok and all(result.startswith("ok") for result in tests.values())
        lines.append(f"backend {name:<10} yes" + (f", {_detail(name)}" if _detail(name) else ""))
        if name != "reference":
            lines += [f"  {op:<27} {result}" for op, result in tests.items()]
    report = Report("\n".join(lines))
    report.ok = ok
    return report


def _detail(name: str) -> str:
    if name == "cpu":
        from swav_kernels import native

        return f"instruction set {native.load().cpu.instruction_set()}"
    return ""


def _self_test(backend: str, op: str) -> str:
    device = "cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    try:
        error = max(
            float((got - want).abs().max())
            for got, want in zip(
                _CASES[op](backend, device), _CASES[op]("reference", device), strict=True
            )
        )
    except Exception as failure:  # any failure is the finding that this report is for
        return f"FAILED: {type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - started
    verdict = "ok" if error <= TOLERANCE else "FAILED"
    return f"{verdict}, largest difference from the reference {error:.1e} ({seconds:.2f} s)"


def _inputs(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 17, 16, generator=generator)
    prototypes = torch.randn(30, 16, generator=generator)
    unit = torch.nn.functional.normalize
    return unit(features, dim=-1).to(device), unit(prototypes, dim=-1).to(device)


def _prototype_scores(backend: str, device: str) -> list[Tensor]:
    features, prototypes = _inputs(device)
    features.requires_grad_()
    scores = prototype_scores(features, prototypes, backend=backend)
    return [scores.detach(), *torch.autograd.grad(scores.square().mean(), features)]


def _sinkhorn(backend: str, device: str) -> list[Tensor]:
    features, prototypes = _inputs(device)
    return [sinkhorn(features @ prototypes.T, backend=backend)]


def _swapped_cross_entropy(backend: str, device: str) -> list[Tensor]:
    features, prototypes = _inputs(device)
    scores = (features @ prototypes.T).requires_grad_()
    codes = sinkhorn(scores[:2], backend="reference")
    loss = swapped_cross_entropy(scores, codes, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, scores)]


def _swav_loss(backend: str, device: str) -> list[Tensor]:
    features, prototypes = (tensor.requires_grad_() for tensor in _inputs(device))
    loss = swav_loss(features, prototypes, backend=backend)
    assert isinstance(loss, Tensor)
    return [loss.detach(), *torch.autograd.grad(loss, (features, prototypes))]


def _prototype_distillation_loss(backend: str, device: str) -> list[Tensor]:
    features, prototypes = (tensor.requires_grad_() for tensor in _inputs(device))
    teacher, teacher_prototypes = features[:2, :, :9].detach(), prototypes[:, :9].detach()
    loss = prototype_distillation_loss(
        features, prototypes, teacher, teacher_prototypes, backend=backend
    )
    return [loss.detach(), *torch.autograd.grad(loss, (features, prototypes))]


_CASES: dict[str, Callable[[str, str], list[Tensor]]] = {
    "prototype_scores": _prototype_scores,
    "sinkhorn": _sinkhorn,
    "swapped_cross_entropy": _swapped_cross_entropy,
    "swav_loss": _swav_loss,
    "prototype_distillation_loss": _prototype_distillation_loss,
}
