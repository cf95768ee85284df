"""The compiled module: which of its kernels fit which tensors, and addresses for them.

The modules beside this one allocate outputs and pass addresses; the kernels run on the CPU or, for
the Sinkhorn, on the GPU that the tensors live on.
"""

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import swav_kernels

if TYPE_CHECKING:
    from swav_kernels._C import CpuKernels, CudaKernels

# csrc/kernels.h: enum class Dtype
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


@functools.cache
def load() -> ModuleType:
    """Import the compiled module, or raise ImportError with the reason."""
    try:
        module = importlib.import_module("swav_kernels._C")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}: this install is without the compiled module, which the wheels for Linux and "
            "macOS on ARM hold, and which pip builds from source with a C++17 compiler"
        ) from error
    if module.__version__ != swav_kernels.__version__:
        raise ImportError(
            f"the compiled module is of version {module.__version__}, this is "
            f"{swav_kernels.__version__}: install swav-kernels again"
        )
    return module


def cuda_is_built() -> bool:
    """Tell whether the compiled module holds CUDA kernels."""
    return hasattr(load(), "cuda")


def cpu_kernels(acc: torch.dtype) -> "CpuKernels":
    """Return the CPU kernels that sum in `acc`, float32 or float64."""
    kernels: CpuKernels = load().cpu.float64 if acc == torch.float64 else load().cpu.float32
    return kernels


def cuda_kernels(acc: torch.dtype) -> "CudaKernels":
    """Return the CUDA kernels that sum in `acc`, float32 or float64."""
    kernels: CudaKernels = load().cuda.float64 if acc == torch.float64 else load().cuda.float32
    return kernels


def address(tensor: Tensor | None) -> int:
    """Return where a contiguous tensor's elements begin; 0 for None."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def typed_address(tensor: Tensor) -> tuple[int, int]:
    """Return address and dtype of a tensor that the kernel converts by itself."""
    return address(tensor), DTYPES[tensor.dtype]
