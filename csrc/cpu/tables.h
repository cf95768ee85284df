// How the copies of an op for each instruction set reach the table of kernels.
#pragma once

#include "../kernels.h"

// Float64 with AVX-512 is that of AVX2: a second copy is not worth its size in every wheel
#ifndef __AVX512F__
#define SWAV_HAS_FLOAT64
#endif

// Each op fills in its own entries; SWAV_ISA is generic, avx2, ... A set with bfloat16 products has
// the kernels on features alone, of float32
#define SWAV_DECLARE_OPS(ISA)                                              \
  namespace swav::cpu::ISA {                                               \
  void add_prototype_scores(Kernels<float>&, Kernels<double>&);            \
  void add_sinkhorn(Kernels<float>&, Kernels<double>&);                    \
  void add_swapped_cross_entropy(Kernels<float>&, Kernels<double>&);       \
  void add_swav_potentials(Kernels<float>&, Kernels<double>&);             \
  void add_swav_loss(Kernels<float>&, Kernels<double>&);                   \
  void add_prototype_distillation_loss(Kernels<float>&, Kernels<double>&); \
  }
