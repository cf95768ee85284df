"""What csrc/bindings.cpp defines: addresses and sizes in, see csrc/kernels.h.

An address of 0 is a null pointer; `dtype` numbers are `swav_kernels.native.DTYPES`.
"""

from collections.abc import Sequence
from typing import type_check_only

__version__: str

def calls() -> dict[str, int]:
    """How often each kernel ran, by name."""

# fmt: off
@type_check_only
class CpuKernels:
    """Kernels that sum in one type."""

    def prototype_scores(
        self, features: int, prototypes: int, scores: int, num_samples: int, num_prototypes: int,
        dim: int, threads: int, /
    ) -> None: ...
    def prototype_scores_gradients(
        self, d_scores: int, features: int, prototypes: int, d_features: int, d_prototypes: int,
        num_samples: int, num_prototypes: int, dim: int, threads: int, /
    ) -> None: ...
    def sinkhorn_column_stats(
        self, scores: int, dtype: int, sample_weights: int, column_max: int, column_sums: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, threads: int, /
    ) -> None: ...
    def sinkhorn_column_sums(
        self, scores: int, dtype: int, f: int, sample_weights: int, column_sums: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, threads: int, /
    ) -> None: ...
    def sinkhorn_potentials(
        self, scores: int, dtype: int, sample_weights: int, log_prototype_weights: int, f: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, iterations: int,
        bfloat16: bool, threads: int, /
    ) -> None: ...
    def sinkhorn_codes(
        self, scores: int, dtype: int, f: int, codes: int, num_problems: int, num_samples: int,
        num_prototypes: int, epsilon: float, hard: bool, normalized: bool, threads: int, /
    ) -> None: ...
    def sinkhorn(
        self, scores: int, dtype: int, codes: int, num_problems: int, num_samples: int,
        num_prototypes: int, epsilon: float, iterations: int, threads: int, /
    ) -> None: ...
    def swapped_cross_entropy(
        self, scores: int, scores_dtype: int, codes: int, codes_dtype: int, loss: int,
        d_scores: int, num_crops: int, num_samples: int, num_prototypes: int, assign: Sequence[int],
        temperature: float, threads: int, /
    ) -> None: ...
    def swav_column_stats(
        self, features: int, prototypes: int, sample_weights: int, column_max: int,
        column_sums: int, num_problems: int, num_samples: int, num_prototypes: int, dim: int,
        epsilon: float, bfloat16: bool, threads: int, /
    ) -> None: ...
    def swav_column_sums(
        self, features: int, prototypes: int, f: int, sample_weights: int, column_sums: int,
        num_problems: int, num_samples: int, num_prototypes: int, dim: int, epsilon: float,
        bfloat16: bool, threads: int, /
    ) -> None: ...
    def swav_potentials(
        self, features: int, prototypes: int, sample_weights: int, log_prototype_weights: int,
        f: int, num_problems: int, num_samples: int, num_prototypes: int, dim: int, epsilon: float,
        iterations: int, bfloat16: bool, threads: int, /
    ) -> None: ...
    def swav_loss(
        self, features: int, prototypes: int, f: int, loss: int, d_features: int, d_prototypes: int,
        statistics: Sequence[int], num_crops: int, num_samples: int, num_prototypes: int, dim: int,
        assign: Sequence[int], temperature: float, epsilon: float, hard: bool, bfloat16: bool,
        threads: int, /
    ) -> None: ...
    def prototype_distillation_loss(
        self, features: int, prototypes: int, teacher_features: int, teacher_prototypes: int,
        f: int, sample_weights: int, loss: int, d_features: int, d_prototypes: int,
        num_crops: int, num_samples: int, num_prototypes: int, dim: int, teacher_dim: int,
        assign: Sequence[int], temperature: float, epsilon: float, bfloat16: bool, threads: int, /
    ) -> None: ...

@type_check_only
class CudaKernels:
    """The same with a workspace, a device and a stream for the threads."""

    def sinkhorn_column_stats(
        self, scores: int, dtype: int, sample_weights: int, column_max: int, column_sums: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, workspace: int,
        device: int, stream: int, /
    ) -> None: ...
    def sinkhorn_column_sums(
        self, scores: int, dtype: int, f: int, sample_weights: int, column_sums: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, workspace: int,
        device: int, stream: int, /
    ) -> None: ...
    def sinkhorn_potentials(
        self, scores: int, dtype: int, sample_weights: int, log_prototype_weights: int, f: int,
        num_problems: int, num_samples: int, num_prototypes: int, epsilon: float, iterations: int,
        bfloat16: bool, workspace: int, device: int, stream: int, /
    ) -> None: ...
    def sinkhorn_codes(
        self, scores: int, dtype: int, f: int, codes: int, num_problems: int, num_samples: int,
        num_prototypes: int, epsilon: float, hard: bool, normalized: bool, workspace: int,
        device: int, stream: int, /
    ) -> None: ...
    def sinkhorn(
        self, scores: int, dtype: int, codes: int, num_problems: int, num_samples: int,
        num_prototypes: int, epsilon: float, iterations: int, workspace: int, device: int,
        stream: int, /
    ) -> None: ...
# fmt: on

@type_check_only
class _Cpu:
    float32: CpuKernels
    float64: CpuKernels
    def instruction_set(self) -> str: ...

@type_check_only
class _Cuda:
    float32: CudaKernels
    float64: CudaKernels
    def sinkhorn_workspace(
        self,
        dtype: int,
        num_problems: int,
        num_samples: int,
        num_prototypes: int,
        device: int,
        /,
    ) -> int: ...
    def plan_on_chip(
        self,
        dtype: int,
        num_samples: int,
        num_prototypes: int,
        processors: int,
        shared_bytes: int,
        /,
    ) -> tuple[int, int, int, int]: ...

cpu: _Cpu
cuda: _Cuda  # only in a build with nvcc
