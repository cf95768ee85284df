// Codes of whole rows from potentials.
#pragma once

#include "sweeps.cuh"

namespace swav::cuda {

enum class CodeKind { soft, hard, unnormalized };

// A block a row, and further ones after it; f is natural, codes may be the scores themselves
template <typename S, typename T = SumOf<S>>
__global__ void __launch_bounds__(kMostRowThreads<T>)
    codes_kernel(const S* scores, const T* f, T* codes, int64_t num_rows, int64_t num_samples,
                 int64_t num_prototypes, T scale, CodeKind kind) {
  for (int64_t b = blockIdx.x; b < num_rows; b += gridDim.x) {
    const S* row = scores + b * num_prototypes;
    const T* potentials = f + b / num_samples * num_prototypes;
    T* code = codes + b * num_prototypes;
    const auto logit = [&](int64_t k) {
      return fma(T(widen(row[k])), scale, potentials[k] * T(kLog2E));
    };
    const auto write = [&](const auto& value) {
      for (int64_t k = threadIdx.x; k < num_prototypes; k += blockDim.x) code[k] = value(k);
    };
    if (kind == CodeKind::unnormalized) {
      write([&](int64_t k) { return exp2(logit(k)); });
      continue;
    }

    ExpSum<T> sums[1] = {ExpSum<T>::empty()};
    for (int64_t start = threadIdx.x; start < num_prototypes; start += kChunk<T> * blockDim.x) {
      T logits[kChunk<T>];
      for (int i = 0; i < kChunk<T>; ++i) {
        const int64_t k = start + i * blockDim.x;
        logits[i] = k < num_prototypes ? logit(k) : -kInf<T>;
      }
      sums[0].add(logits);
    }
    block_merge(sums);
    const ExpSum<T> total = sums[0];
    if (kind == CodeKind::soft) {
      const T inverse = T(1) / total.sum, shift = total.shift();
      write([&](int64_t k) { return exp2(logit(k) - shift) * inverse; });
    } else {
      int64_t winner = num_prototypes;  // the lowest index on ties
      for (int64_t k = threadIdx.x; k < winner; k += blockDim.x)
        if (logit(k) == total.top) winner = k;
      winner = block_min(winner);
      const T zero = total.sum > T(0) ? T(0) : kNaN<T>;
      write([&](int64_t k) { return k == winner ? zero + T(1) : zero; });
    }
  }
}

}  // namespace swav::cuda
