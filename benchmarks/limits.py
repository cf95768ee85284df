"""What this machine does at most, measured in the same run: copy, matrix product, exponentials."""

import importlib.util
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks import measure
from benchmarks.case import Contender, Shape

SECONDS = 0.05  # for each limit
LEAST_SAMPLES = 5
SMALLEST_WORKING_SET = 2**16  # below it a share says nothing
EXP_BLOCK = 2**16  # float32 numbers that stay in the L2 cache of a core
MOST_ROWS, MOST_COLUMNS = 4096, 32768  # of the matrix product: large enough for its full rate

Sizes = tuple[int, int, int]


@dataclass
class Limits:
    """Rates of one device, each measured when it is first asked for."""

    device: torch.device
    copies: dict[int, float] = field(default_factory=dict)  # bytes: bytes / s
    products: dict[tuple[torch.dtype, Sizes], float] = field(default_factory=dict)  # FLOP / s
    exps: float | None = None  # 1 / s

    def copy(self, working_set: int) -> float:
        """Bytes/s, read and written, of a copy whose source and target are that large together."""
        size = 1 << max(0, working_set - 1).bit_length()  # the next power of two
        if size not in self.copies:
            source = torch.zeros(size // 2, dtype=torch.uint8, device=self.device)
            target = torch.zeros_like(source)
            self.copies[size] = size / self._fastest(lambda: target.copy_(source))
        return self.copies[size]

    def product(self, dtype: torch.dtype, sizes: Sizes) -> float:
        """FLOP/s of [M, D] x [D, K] in this dtype, sums in float32."""
        m, k, d = min(sizes[0], MOST_ROWS), min(sizes[1], MOST_COLUMNS), sizes[2]
        if (dtype, (m, k, d)) not in self.products:
            a, b = (torch.ones(n, d, dtype=dtype, device=self.device) for n in (m, k))
            out = torch.empty(m, k, dtype=dtype, device=self.device)
            seconds = self._fastest(lambda: torch.mm(a, b.t(), out=out))
            self.products[dtype, (m, k, d)] = 2 * m * k * d / seconds
        return self.products[dtype, (m, k, d)]

    def exp(self) -> float:
        """Exponentials/s of float32 numbers in a cache or, on a GPU, in registers."""
        if self.exps is None:
            if self.device.type == "cpu":
                self.exps = self._cpu_exp()
            else:
                self.exps = self._gpu_exp()
        return self.exps

    def shares(self, contender: Contender, shape: Shape, milliseconds: float) -> dict[str, float]:
        """Share of each limit that its least work reaches in that time; empty if it is tiny."""
        work, seconds = contender.work, milliseconds / 1e3
        if work.working_set < SMALLEST_WORKING_SET:
            return {}
        shares = {"copy": work.bytes / seconds / self.copy(work.working_set)}
        if work.matrix_flops:
            sizes = (shape.num_crops * shape.sizes[-2], shape.sizes[-1], shape.dim)
            rate = self.product(contender.matrix_dtype, sizes)
            shares["product"] = work.matrix_flops / seconds / rate
        if work.exps:
            shares["exp"] = work.exps / seconds / self.exp()
        return shares

    def as_json(self) -> dict[str, object]:
        """Everything that was measured, in GB/s, GFLOP/s and G/s."""
        return {
            "copy_gb_s": {size: rate / 1e9 for size, rate in sorted(self.copies.items())},
            "product_gflop_s": {
                f"{str(dtype).removeprefix('torch.')} {'x'.join(map(str, sizes))}": rate / 1e9
                for (dtype, sizes), rate in self.products.items()
            },
            "exp_g_s": None if self.exps is None else self.exps / 1e9,
        }

    def _cpu_exp(self) -> float:
        # one thread's rate, times the threads: NumPy has no more than one
        x = torch.linspace(-10, 10, EXP_BLOCK)
        y = torch.empty_like(x)
        x_array, y_array = x.numpy(), y.numpy()
        calls: tuple[measure.Call, ...] = (
            lambda: torch.exp(x, out=y),
            lambda: np.exp(x_array, out=y_array),
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return threads * EXP_BLOCK / min(self._fastest(call) for call in calls)
        finally:
            torch.set_num_threads(threads)

    def _gpu_exp(self) -> float:
        if importlib.util.find_spec("triton") is not None:
            from benchmarks import exp_rate  # imports triton

            count, call = exp_rate.chains(self.device)
        else:
            x = torch.zeros(2**22, device=self.device)
            count, call = x.numel(), lambda: torch.exp(x, out=x)
        return count / self._fastest(call)

    def _fastest(self, call: measure.Call) -> float:
        """Seconds of the fastest of many calls, timed as the cases are."""
        if self.device.type == "cpu":
            sample = measure.cpu_sampler({"": call})
        else:
            sample = measure.gpu_sampler({"": [call]}, self.device, launch_counts=False)
        sample("")
        best, end = float("inf"), time.perf_counter() + SECONDS
        samples = 0
        while samples < LEAST_SAMPLES or time.perf_counter() < end:
            best = min(best, sample("")[0] / 1e3)
            samples += 1
        return best
