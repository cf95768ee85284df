// Sums of powers of two that neither overflow nor vanish, over a thread's values, a warp, a block,
// and over the blocks of a grid. Every order is fixed: the same bits in every run.
#pragma once

#include <cstdint>

#include "numbers.cuh"

namespace swav::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
template <typename T>
constexpr int kChunk = 32 / sizeof(T);  // logits of one sum that a thread holds at once

template <typename T>
__device__ inline T warp_max(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = fmax(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

template <typename T>
__device__ inline T warp_sum(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// sum_i 2^t_i = sum * 2^top with top = max_i t_i. NaN and +inf make the sum NaN (top passes over
// NaN); nothing but -inf leaves (-inf, 0).
template <typename T>
struct ExpSum {
  T top, sum;

  __device__ static ExpSum empty() { return {-kInf<T>, T(0)}; }

  // What to subtract from a logit before exp2: never -inf - -inf
  __device__ T shift() const { return top == -kInf<T> ? T(0) : top; }

  template <int kCount>
  __device__ void add(const T (&t)[kCount]) {
    const T before = top;
    for (int i = 0; i < kCount; ++i) top = fmax(top, t[i]);
    T more = 0;
    for (int i = 0; i < kCount; ++i) more += exp2(t[i] - shift());
    sum = sum * exp2(before - shift()) + more;
  }

  __device__ void merge(ExpSum other) {
    const T before = top;
    top = fmax(top, other.top);
    sum = sum * exp2(before - shift()) + other.sum * exp2(other.top - shift());
  }
};

// Over the warp, the same in every lane
template <typename T>
__device__ inline ExpSum<T> warp_merge(ExpSum<T> mine) {
  ExpSum<T> all{warp_max(mine.top), T(0)};
  all.sum = warp_sum(mine.sum * exp2(mine.top - all.shift()));
  return all;
}

// Each of several sums over the block, the same in every thread
template <int kCount, typename T>
__device__ inline void block_merge(ExpSum<T> (&sums)[kCount]) {
  __shared__ ExpSum<T> of_warp[kCount][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int i = 0; i < kCount; ++i) {
    const ExpSum<T> merged = warp_merge(sums[i]);
    if (lane == 0) of_warp[i][warp] = merged;
  }
  __syncthreads();
  for (int i = 0; i < kCount; ++i)
    sums[i] = warp_merge(lane < warps ? of_warp[i][lane] : ExpSum<T>::empty());
  __syncthreads();
}

// The smallest index over the block, the same in every thread
__device__ inline int64_t block_min(int64_t index) {
  __shared__ int64_t of_warp[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const auto warp_min = [](int64_t x) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const int64_t other = __shfl_xor_sync(kAllLanes, x, offset);
      x = other < x ? other : x;
    }
    return x;
  };
  index = warp_min(index);
  if (lane == 0) of_warp[warp] = index;
  __syncthreads();
  index = warp_min(of_warp[lane < warps ? lane : 0]);
  __syncthreads();
  return index;
}

// A column's value combined over the warps in order; lanes are columns. scratch: [blockDim.x].
template <typename T, typename Combine>
__device__ inline T over_warps(T mine, double* scratch, const Combine& combine) {
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  scratch[threadIdx.x] = mine;
  __syncthreads();
  T all = T(scratch[lane]);
  for (int warp = 1; warp < warps; ++warp) all = combine(all, T(scratch[warp * kWarp + lane]));
  __syncthreads();
  return all;
}

// Partial column sums of many blocks of rows, added up for kWarp columns from `first` on: a lane is
// a column, a warp takes every warps-th partial. In double, which no number of partials can
// exhaust. partial: [num_partials, K]; or, with maxima, [num_partials, 2, K] of tops and sums.
template <bool kHasMaxima, typename T>
__device__ inline ExpSum<T> combine_columns(const T* partial, int64_t num_partials,
                                            int64_t num_prototypes, int64_t first,
                                            double* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t last = num_prototypes - 1, k = first + lane < last ? first + lane : last;
  const int64_t stride = (kHasMaxima ? 2 : 1) * num_prototypes;
  ExpSum<T> column{T(0), T(0)};
  if constexpr (kHasMaxima) {
    T top = -kInf<T>;
    for (int64_t i = warp; i < num_partials; i += warps) top = fmax(top, partial[i * stride + k]);
    column.top = over_warps(top, scratch, [](T a, T b) { return fmax(a, b); });
  }
  double sum = 0;
  for (int64_t i = warp; i < num_partials; i += warps) {
    const T* of_block = partial + i * stride + k;
    if constexpr (kHasMaxima)
      sum += of_block[num_prototypes] * exp2(of_block[0] - column.shift());
    else
      sum += of_block[0];
  }
  column.sum = T(over_warps(sum, scratch, [](double a, double b) { return a + b; }));
  return column;
}

}  // namespace swav::cuda
