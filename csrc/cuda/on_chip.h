// The Sinkhorn in one launch that keeps the scores on the chip: csrc/cuda/on_chip.cu
#pragma once

#include "launch.h"

namespace swav::cuda {

// How a problem is laid out over the chip, from its shape and the device alone: the same for one
// problem as for many, and so are the bits of the result
struct OnChipPlan {
  int64_t rows;      // that a block keeps in shared memory; 0: the problem does not fit
  int64_t blocks;    // a problem
  int64_t problems;  // a launch
  size_t shared_bytes;
};

OnChipPlan plan_on_chip(Dtype dtype, const Sizes& sizes, int device);

// Potentials f [A, K] and codes [A, N, K], either of which may be null. exchange: [A, K], partial:
// [A, blocks, 2, K].
template <typename T>
Error sinkhorn_on_chip(Scores scores, const T* sample_weights, const T* log_prototype_weights, T* f,
                       T* codes, T* exchange, T* partial, const Sizes& sizes, int iterations,
                       const OnChipPlan& plan, Stream stream);

}  // namespace swav::cuda
