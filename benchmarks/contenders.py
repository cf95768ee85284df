"""Everything that is timed in a case: our variants on each backend, and the baselines."""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.baselines import BASELINES
from benchmarks.case import Call, Case, Contender, Inputs
from swav_kernels.dispatch import BACKENDS, why_not

# a baseline promises no bound of ours; this much still convicts one that computes something else
BASELINE_LOOSENESS = 20
REFERENCE_MATRICES = 6  # float32 matrices [B, K] a crop that the reference keeps: an estimate


def ours(case: Case, backends: Sequence[str]) -> Iterator[Contender]:
    """Yield the variants of a case on each backend; the reference is timed in its plain form."""
    for backend in backends:
        is_reference = backend == "reference"
        matrices = REFERENCE_MATRICES * case.shape.num_crops * case.shape.matrix_bytes
        for variant in case.variants[:1] if is_reference else case.variants:
            yield Contender(
                name=backend,
                variant=variant.name,
                prepare=lambda x, prepare=variant.prepare, backend=backend: prepare(x, backend),
                bounds=variant.bounds,
                work=variant.work,
                dtype=variant.dtype,
                matrix_dtype=variant.matrix_dtype,
                extra_bytes=matrices if is_reference else variant.extra_bytes,
            )


def theirs(case: Case, names: Sequence[str]) -> Iterator[Contender]:
    """Yield the baselines that have the case's op."""
    first = case.variants[0]
    for name in names:
        baseline = BASELINES[name]
        if case.op not in baseline.prepare:
            continue
        like = next(
            (v for v in case.variants if baseline.is_bf16 and v.matrix_dtype == torch.bfloat16),
            first,
        )
        yield Contender(
            name=name,
            variant="",
            prepare=lambda x, prepare=baseline.prepare[case.op]: prepare(x, case.shape),
            bounds=tuple(bound.times(BASELINE_LOOSENESS) for bound in like.bounds),
            work=first.work,
            extra_bytes=int(baseline.matrices(case.shape) * case.shape.matrix_bytes),
            is_ours=False,
            can_be_captured=baseline.can_be_captured,
        )


def find(case: Case, name: str, variant: str) -> Contender:
    """Return the contender of that name."""
    found = theirs(case, [name]) if name in BASELINES else ours(case, [name])
    return next(contender for contender in found if contender.variant == variant)


def ready(contender: Contender, inputs: Inputs, copy: bool = False) -> Call:
    """Return the call on these inputs, in the contender's dtype; on a copy of them if asked for."""
    return contender.prepare({k: x.to(contender.dtype, copy=copy) for k, x in inputs.items()})


def why_cannot_time(op: str, backend: str, device: torch.device) -> str | None:
    """Return why a backend's time would be missing or mean nothing here, or None."""
    if backend == "triton" and device.type == "cpu":
        return "it needs a GPU: interpreted kernels tell nothing about speed"
    return why_not(backend, op, device, torch.float32)


def default_backends(op: str, device: torch.device) -> list[str]:
    """Return the backends that can be timed on this device."""
    return [name for name in BACKENDS if why_cannot_time(op, name, device) is None]
