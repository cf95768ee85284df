"""The compiled module and its ops."""

import importlib
from types import ModuleType


def load() -> ModuleType:
    """Import the compiled module, or raise ImportError with the reason."""
    return importlib.import_module("swav_kernels._C")


def cuda_is_built() -> bool:
    """Tell whether the compiled module holds CUDA kernels."""
    return hasattr(load(), "cuda")
