// The Sinkhorn in one launch that keeps the scores on the chip: on_chip.cu, on_chip.cuh
#pragma once

#include "launch.h"

namespace swav::cuda {

OnChipPlan plan_on_device(Dtype dtype, int64_t num_samples, int64_t num_prototypes, int device);

// Potentials f [A, K] and codes [A, N, K], each unless null; exchange: [A, K], partial:
// [A, blocks, 2, K]
template <typename T>
Error sinkhorn_on_chip(const SinkhornCall& call, const OnChipPlan& plan, const T* sample_weights,
                       const T* log_prototype_weights, int iterations, T* f, T* codes, T* exchange,
                       T* partial);

}  // namespace swav::cuda
