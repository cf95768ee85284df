// From column sums to the next prototype potentials, in base 2, as csrc/cpu/potentials.h does it.
// A bad column gets f = NaN; it makes every code of the next sweep NaN, and finish() every f.
#pragma once

#include <cmath>

#include "reduce.cuh"

namespace swav::cuda {

// log r in base 2 of prototype k
template <typename T>
__device__ inline T share(const T* log_prototype_weights, int64_t k) {
  return log_prototype_weights == nullptr ? T(0) : log_prototype_weights[k] * T(kLog2E);
}

// f = log r - log sum_b 2^t; a column without samples is off: -inf
template <typename T>
__device__ inline T first_potential(ExpSum<T> column, T log_r) {
  const T next = column.sum == T(0) ? -kInf<T> : log_r - column.top - log2(column.sum);
  return column.sum < kInf<T> && next < kInf<T> ? next : kNaN<T>;
}

// log in base 2 of the sum of all column sums over the sum of all r. The caller sees to it that
// given weights make it 0; without them it is known before any sweep.
template <typename T>
T level_of(const T* log_prototype_weights, int64_t num_samples, int64_t num_prototypes) {
  if (log_prototype_weights != nullptr || num_samples == 0) return T(0);
  return T(std::log2(double(num_samples) / double(num_prototypes)));
}

// f += log r - log sum + level. Without the last term, the same for all prototypes, f would move by
// log(K / N) in every iteration, and lose its digits
template <typename T>
__device__ inline T next_potential(T f, T sum, T log_r, T level) {
  const T log_sum = log2(sum < kTiny<T> ? kTiny<T> : sum);  // NaN stays NaN
  const T next = f == -kInf<T> ? f : f + (log_r - log_sum + level);
  return sum < kInf<T> && next < kInf<T> ? next : kNaN<T>;
}

// One problem's potentials in natural logarithms; one bad score makes them all NaN, never plausible
// numbers. By a whole block; `out` may be f.
template <typename T>
__device__ inline void finish(const T* f, int64_t num_prototypes, T* out) {
  bool is_bad = false;
  for (int64_t k = threadIdx.x; k < num_prototypes; k += blockDim.x)
    is_bad = is_bad || !(f[k] < kInf<T>);
  is_bad = __syncthreads_or(is_bad);
  for (int64_t k = threadIdx.x; k < num_prototypes; k += blockDim.x)
    out[k] = is_bad ? kNaN<T> : f[k] * T(kLn2);
}

}  // namespace swav::cuda
