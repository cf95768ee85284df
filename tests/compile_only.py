"""Compiling kernels for GPUs that are not here, exactly as the launchers would.

The launchers run on CPU tensors with `target_of` replaced, and what they launch is recorded instead
of run: block sizes, dtypes and number of warps are those that are shipped.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Launch:
    """One recorded launch: what the compiler sees of its arguments."""

    kernel: JITFunction[Any]
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]  # pointers, and integers that 16 divides
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    def __str__(self) -> str:
        """Name, constants and options."""
        return f"{self.name}({dict(self.constants)}, {dict(self.options)})"


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int
    spilled: int  # bytes of stack and spilled registers
    shared: int  # bytes
    assembly: str


def record_launches(
    monkeypatch: pytest.MonkeyPatch,
    modules: tuple[ModuleType, ...],
    target: str,
    call: Callable[[], object],
) -> Counter[Launch]:
    """Launches of a call, as they would be on the target, and how often each is made."""
    launches: Counter[Launch] = Counter()

    def record(
        kernel: JITFunction[Any], *args: object, grid: object, warmup: bool, **kwargs: Any
    ) -> None:
        assert not args, "launchers pass arguments by name"
        launches[_launch(kernel, kwargs)] += 1

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        for module in modules:
            if hasattr(module, "target_of"):
                patch.setattr(module, "target_of", lambda device: target)
        call()
    return launches


def _launch(kernel: JITFunction[Any], kwargs: dict[str, Any]) -> Launch:
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    signature, constants, aligned = {}, {}, []
    for parameter in kernel.params:
        value = kwargs[parameter.name]
        is_one = isinstance(value, int) and not isinstance(value, bool) and value == 1
        if parameter.is_constexpr or value is None or is_one:  # as Triton specialises
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = mangle_type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            aligned.append(parameter.name)
    return Launch(
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(aligned),
        tuple(options.items()),
    )


def compile_launch(launch: Launch, target: str) -> Resources:
    """Compile for the target and read what it takes."""
    names = launch.kernel.arg_names
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    compiled = triton.compile(source, target=TARGETS[target], options=dict(launch.options))
    if "cubin" not in compiled.asm:
        assembly = compiled.asm["amdgcn"]

        def number(key: str) -> int:
            return int(re.search(rf"\.{key}:\s+(\d+)", assembly).group(1))

        # scalar registers spill to lanes of vector registers, not to memory
        spilled = 4 * number("vgpr_spill_count") + number("private_segment_fixed_size")
        return Resources(number("vgpr_count"), spilled, compiled.metadata.shared, assembly)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report.stdout + report.stderr))
    return Resources(
        int(usage["REG"]),
        int(usage["STACK"]) + int(usage["LOCAL"]),
        compiled.metadata.shared,
        compiled.asm["ptx"],
    )
