"""Triton kernels: NVIDIA, AMD and Intel GPUs, or interpreted on CPU tensors.

Logarithms are of base 2 inside the kernels: exp2 is what the hardware has, and the factor log2(e)
is folded into the scale of the scores.
"""
