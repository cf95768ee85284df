"""The Triton kernels of the package: tests fail if a new one is not among what they cover."""

import importlib
import pkgutil
from types import ModuleType

import swav_kernels.triton_kernels as package

MODULES: tuple[ModuleType, ...] = tuple(
    importlib.import_module(f"{package.__name__}.{info.name}")
    for info in pkgutil.iter_modules(package.__path__)
)
KERNELS = {
    name
    for module in MODULES
    for name, value in vars(module).items()
    if name.endswith("_kernel") and hasattr(value, "fn")
}
