// Vectors of the widest registers of this instruction set, by the compiler's own vector types: no
// intrinsics, so the same source serves AVX-512, AVX2, SSE2 and NEON.
//
// This and the other headers of csrc/cpu are compiled once per instruction set. All is in an
// unnamed namespace, so no copy of a function can stand in for that of another set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace swav::cpu::SWAV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VecTypes;
template <>
struct VecTypes<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integer;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecTypes<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integer;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vec = typename VecTypes<T>::Vector;
// Integers as wide as T: results of comparisons (0 or -1), bit patterns, indices
template <typename T>
using Ints = typename VecTypes<T>::Integers;
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
constexpr T kInf = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <typename T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}

template <typename T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n lanes; the others are `fill`
template <typename T>
inline Vec<T> load_part(const T* p, int64_t n, T fill) {
  Vec<T> v = splat(fill);
  std::memcpy(&v, p, size_t(n) * sizeof(T));
  return v;
}

template <typename T>
inline void store_part(T* p, Vec<T> v, int64_t n) {
  std::memcpy(p, &v, size_t(n) * sizeof(T));
}

// The larger one; a NaN in x is passed over
template <typename T>
inline Vec<T> larger(Vec<T> x, Vec<T> best) {
  return x > best ? x : best;
}

template <typename T>
inline T largest_lane(Vec<T> v) {
  T best = v[0];
  for (int i = 1; i < kLanes<T>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// A tree, so that the order of the additions is the same for every call
template <typename T>
inline T sum_lanes(Vec<T> v) {
  T lane[kLanes<T>];
  std::memcpy(lane, &v, sizeof v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

template <typename T>
inline T sum_first(Vec<T> v, int64_t lanes) {
  T sum = 0;
  for (int64_t i = 0; i < lanes; ++i) sum += v[i];
  return sum;
}

// Lane numbers 0, 1, 2, ...
template <typename T>
inline Ints<T> lane_numbers() {
  Ints<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i;
  return v;
}

#if defined(__GNUC__) && !defined(__clang__)
// Rows become columns, by exchanging ever larger blocks
template <typename T, int kWidth = 1>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  if constexpr (kWidth < kLanes<T>) {
    Ints<T> low{}, high{};  // lanes of [a, b] that stay in the upper and in the lower row
    for (int i = 0; i < kLanes<T>; ++i) {
      const bool from_b = (i & kWidth) != 0;
      low[i] = from_b ? kLanes<T> + i - kWidth : i;
      high[i] = from_b ? kLanes<T> + i : i + kWidth;
    }
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & kWidth) != 0) continue;
      const Vec<T> a = rows[i], b = rows[i + kWidth];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + kWidth] = __builtin_shuffle(a, b, high);
    }
    transpose<T, 2 * kWidth>(rows);
  }
}
#else
template <typename T>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < i; ++j) {
      const T x = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = x;
    }
}
#endif

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
