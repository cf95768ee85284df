// From column sums to the next prototype potentials, in base 2. The sweeps that make the sums are
// in sinkhorn.cpp (over scores) and swav_potentials.cpp (over features and prototypes).
#pragma once

#include <cmath>

#include "exp.h"
#include "rows.h"
#include "scratch.h"

namespace swav::cpu::SWAV_ISA {
namespace {

template <typename T>
inline void scale_all(const T* x, T factor, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

// One bad score makes its whole problem NaN, never plausible numbers
template <typename T>
inline void poison(bool bad, T* f, int64_t n) {
  if (bad)
    for (int64_t k = 0; k < n; ++k) f[k] = kNaN<T>;
}

// f = log r - log sum_b exp t of one problem; a column without samples is off: -inf
template <typename T>
inline void first_potentials(const T* column_max, const T* sums, const T* log_r, int64_t n, T* f) {
  Ints<T> bad{};
  over_vectors<T>(n, [&](int64_t k, auto width) {
    const Vec<T> sum = get(sums + k, width, T(1)), top = get(column_max + k, width, T(0));
    const Vec<T> r = log_r == nullptr ? Vec<T>{} : get(log_r + k, width, T(0));
    const Vec<T> next = sum == T(0) ? splat(-kInf<T>) : r - top - log2<T>(sum);
    put(f + k, next, width);
    bad |= ~((sum < kInf<T>)&(next < kInf<T>));  // false for NaN
  });
  int64_t any = 0;
  for (int i = 0; i < kLanes<T>; ++i) any |= bad[i];
  poison(any != 0, f, n);
}

// f += log r - log sums + log(total sum / total r) of one problem. The last term is the same for
// all prototypes: without it f would move by log(K / N) in every iteration, and lose its digits
template <typename T>
inline void next_potentials(const T* sums, const T* log_r, int64_t n, T* f) {
  const T tiny = std::numeric_limits<T>::min();
  Vec<T> total{}, total_r{};
  over_vectors<T>(n, [&](int64_t k, auto width) {
    const Vec<T> r = log_r == nullptr ? splat(T(1)) : exp2<T>(get(log_r + k, width, T(0)));
    const Ints<T> is_on = get(f + k, width, -kInf<T>) > -kInf<T>;
    total += is_on ? get(sums + k, width, T(0)) : Vec<T>{};
    total_r += is_on ? r : Vec<T>{};
  });
  T level = std::log2(sum_lanes<T>(total) / sum_lanes<T>(total_r));
  if (!std::isfinite(level)) level = 0;
  Ints<T> bad{};
  over_vectors<T>(n, [&](int64_t k, auto width) {
    const Vec<T> sum = get(sums + k, width, T(1)), old = get(f + k, width, T(0));
    const Vec<T> r = log_r == nullptr ? Vec<T>{} : get(log_r + k, width, T(0));
    const Vec<T> log_sum = log2<T>(sum < tiny ? splat(tiny) : sum);
    const Vec<T> next = old == -kInf<T> ? old : old + (r - log_sum + level);
    put(f + k, next, width);
    bad |= ~((sum < kInf<T>)&(next < kInf<T>));
  });
  int64_t any = 0;
  for (int i = 0; i < kLanes<T>; ++i) any |= bad[i];
  poison(any != 0, f, n);
}

// f [K] in natural logarithms after T iterations, from the sweeps of one kind of input:
// first_sweep(column_max, sums), in base 2, and later_sweep(f in base 2, sums)
template <typename T, typename FirstSweep, typename LaterSweep>
inline void iterate(const FirstSweep& first_sweep, const LaterSweep& later_sweep,
                    const T* log_prototype_weights, int64_t num_prototypes, int iterations, T* f) {
  Scratch column_max(num_prototypes * sizeof(T)), sums(num_prototypes * sizeof(T));
  Scratch log_r(num_prototypes * sizeof(T));
  const T* r = nullptr;
  if (log_prototype_weights != nullptr) {
    scale_all(log_prototype_weights, T(kLog2E), num_prototypes, log_r.as<T>());
    r = log_r.as<T>();
  }
  first_sweep(column_max.as<T>(), sums.as<T>());
  first_potentials(column_max.as<T>(), sums.as<T>(), r, num_prototypes, f);
  for (int iteration = 1; iteration < iterations; ++iteration) {
    later_sweep(f, sums.as<T>());
    next_potentials(sums.as<T>(), r, num_prototypes, f);
  }
  scale_all(f, T(kLn2), num_prototypes, f);
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
