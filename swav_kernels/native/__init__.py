"""The compiled module: which of its kernels fit which tensors, and addresses for them.

The modules beside this one allocate outputs and pass addresses; the kernels run on the CPU or, for
the Sinkhorn, on the GPU that the tensors live on.
"""

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Literal

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
    name = "swav_kernels._C"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None and is_cut_off(spec.origin):
        raise ImportError(f"{spec.origin} is cut off: install swav-kernels again")
    try:
        module = importlib.import_module(name)
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


def is_cut_off(path: str) -> bool:
    """Tell whether an ELF file ends before its section headers, which come last.

    The system's loader would map what is not there, and the process would end with a bus error.
    """
    with open(path, "rb") as file:
        header = file.read(64)
        size = file.seek(0, 2)
    if header[:5] != b"\x7fELF\x02" or len(header) < 64:  # the loader tells of anything else
        return False
    order: Literal["little", "big"] = "little" if header[5] == 1 else "big"
    first, size_of_one, count = (
        int.from_bytes(header[at:end], order) for at, end in ((40, 48), (58, 60), (60, 62))
    )
    return first + size_of_one * count > size


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
