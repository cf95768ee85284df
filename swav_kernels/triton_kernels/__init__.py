"""Triton kernels: NVIDIA, AMD and Intel GPUs, or interpreted on CPU tensors.

Logarithms are of base 2 inside the kernels: exp2 is what the hardware has, and the factor log2(e)
is folded into the scale of the scores.
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from swav_kernels.triton_kernels import interpreter

    interpreter.correct()
