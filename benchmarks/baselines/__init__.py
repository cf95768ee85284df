"""What our ops are compared with: for each baseline which ops it has, and why it may be missing.

A baseline's `prepare` takes the inputs and the shape and returns the call that is timed.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.baselines import attention, in_numpy, installed, official, plain
from benchmarks.case import ASSIGN, Call, Inputs, Shape

Prepare = Callable[[Inputs, Shape], Call]


@dataclass(frozen=True)
class Baseline:
    """One column of comparisons."""

    about: str
    prepare: dict[str, Prepare]  # by op
    # float32 matrices [B, K] that it keeps beyond the inputs at its worst: an estimate
    matrices: Callable[[Shape], float]
    package: str | None = None  # that must be installed
    devices: tuple[str, ...] = ("cpu", "cuda")
    is_bf16: bool = False  # products rounded to bfloat16: held to the bounds of such variants
    can_be_captured: bool = True  # in a CUDA graph

    def why_not(self, device: torch.device) -> str | None:
        """Return why it cannot run here, or None."""
        if device.type not in self.devices:
            return f"it runs on {' or '.join(self.devices)} only"
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return None


def _features(x: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return x["features"], x["prototypes"]


def _both_sides(x: Inputs) -> tuple[torch.Tensor, ...]:
    return (*_features(x), x["teacher_features"], x["teacher_prototypes"])


def _distillation(loss: Callable[..., torch.Tensor]) -> Prepare:
    """A loss of a student and a teacher whose gradient for the student autograd finds."""

    def prepare(x: Inputs, shape: Shape) -> Call:
        z, c, t, e = _both_sides(x)
        return official.with_gradients(lambda z, c: loss(z, c, t, e), (z, c), shape.gradient)

    return prepare


def _scores_and_codes(x: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return x["scores"], x["codes"]


def _official_prototype_scores(x: Inputs, shape: Shape) -> Call:
    z, c = _features(x)
    return lambda: (z @ c.t(),)


def _official_sinkhorn(x: Inputs, shape: Shape) -> Call:
    return lambda: (official.sinkhorn(x["scores"]),)


def _official_swapped_cross_entropy(x: Inputs, shape: Shape) -> Call:
    s, q = _scores_and_codes(x)
    loss = partial(official.swapped_cross_entropy, codes=q)
    return official.with_gradients(loss, (s,), shape.gradient)


def _differentiable(loss: Callable[..., torch.Tensor]) -> Prepare:
    """A loss of features and prototypes whose gradient autograd finds."""
    return lambda x, shape: official.with_gradients(loss, _features(x), shape.gradient)


def _compiled_sinkhorn(x: Inputs, shape: Shape) -> Call:
    compiled = _compile(official.sinkhorn, shape)
    return lambda: (compiled(x["scores"]),)


def _compiled_swapped_cross_entropy(x: Inputs, shape: Shape) -> Call:
    s, q = _scores_and_codes(x)
    compiled = _compile(official.swapped_cross_entropy, shape)
    return official.with_gradients(lambda s: compiled(s, q), (s,), shape.gradient)


def _compiled_swav_loss(x: Inputs, shape: Shape) -> Call:
    return _differentiable(_compile(official.swav_loss, shape))(x, shape)


def _compiled_distillation(x: Inputs, shape: Shape) -> Call:
    return _distillation(_compile(official.prototype_distillation_loss, shape))(x, shape)


@functools.lru_cache(maxsize=1)
def _compile(function: Callable[..., torch.Tensor], shape: Shape) -> Callable[..., torch.Tensor]:
    """Compile for this shape alone: after a few shapes torch would give up or generalise."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _of_scores(sinkhorn: Callable[[torch.Tensor], torch.Tensor]) -> Prepare:
    return lambda x, shape: lambda: (sinkhorn(x["scores"]),)


def _written_out(loss: Callable[..., tuple[torch.Tensor, ...]], of_scores: bool) -> Prepare:
    """A loss that returns its gradients by itself."""
    take = _scores_and_codes if of_scores else _features
    return lambda x, shape: lambda: loss(*take(x), shape.gradient)


def _kept(shape: Shape) -> float:
    """A log-softmax a pair, scores and their gradient a crop, the codes; or two of a Sinkhorn."""
    codes = len(ASSIGN) if shape.num_pairs else 0
    return shape.num_pairs + 2 * shape.num_crops + codes


def _kept_by_plain(shape: Shape) -> float:
    return shape.num_crops + (4 if shape.num_pairs else 0)


OFFICIAL = "official"
BASELINES = {
    OFFICIAL: Baseline(
        "in-place divisions, a log-softmax a pair, in eager torch",
        {
            "prototype_scores": _official_prototype_scores,
            "sinkhorn": _official_sinkhorn,
            "swapped_cross_entropy": _official_swapped_cross_entropy,
            "swav_loss": _differentiable(official.swav_loss),
            "prototype_distillation_loss": _distillation(official.prototype_distillation_loss),
        },
        _kept,
    ),
    "compile": Baseline(
        "the official form under torch.compile",
        {
            "sinkhorn": _compiled_sinkhorn,
            "swapped_cross_entropy": _compiled_swapped_cross_entropy,
            "swav_loss": _compiled_swav_loss,
            "prototype_distillation_loss": _compiled_distillation,
        },
        _kept,
    ),
    "plain": Baseline(
        "the best plain torch: our identities, gradients written out",
        {
            "sinkhorn": _of_scores(plain.sinkhorn),
            "swapped_cross_entropy": _written_out(plain.swapped_cross_entropy, of_scores=True),
            "swav_loss": _written_out(plain.swav_loss, of_scores=False),
            "prototype_distillation_loss": lambda x, shape: (
                lambda: plain.prototype_distillation_loss(*_both_sides(x), shape.gradient)
            ),
        },
        _kept_by_plain,
    ),
    "official_bf16": Baseline(
        "the official form with bfloat16 products, as under autocast",
        {"swav_loss": _differentiable(official.swav_loss_bf16)},
        _kept,
        is_bf16=True,
    ),
    "sdpa": Baseline(
        "streaming by scaled_dot_product_attention",
        {"swav_loss": _differentiable(attention.swav_loss)},
        lambda shape: 0,
    ),
    "numpy": Baseline(
        "the official form in NumPy",
        {
            "prototype_scores": lambda x, shape: (
                lambda: (in_numpy.prototype_scores(*_features(x)),)
            ),
            "sinkhorn": _of_scores(in_numpy.sinkhorn),
            "swapped_cross_entropy": _written_out(in_numpy.swapped_cross_entropy, of_scores=True),
            "swav_loss": _written_out(in_numpy.swav_loss, of_scores=False),
        },
        _kept_by_plain,
        devices=("cpu",),
    ),
    "lightly": Baseline(
        "lightly.loss.swav_loss",
        {
            "sinkhorn": _of_scores(installed.lightly_sinkhorn),
            "swav_loss": _differentiable(installed.lightly_swav_loss),
        },
        _kept,
        package="lightly",
    ),
    "pot": Baseline(
        "ot.sinkhorn",
        {"sinkhorn": lambda x, shape: installed.pot_sinkhorn(x["scores"])},
        lambda shape: 4,
        package="ot",
        can_be_captured=False,  # it asks for values
    ),
    "flash_sinkhorn": Baseline(
        "flash_sinkhorn.SamplesLoss: potentials, streamed from features",
        {"sinkhorn": lambda x, shape: installed.flash_sinkhorn_potentials(*_features(x))},
        lambda shape: 0,
        package="flash_sinkhorn",
        devices=("cuda",),
        can_be_captured=False,
    ),
}
