// Rows of any floating type as rows of T, and loops over a row whose length no vector divides.
#pragma once

#include <algorithm>
#include <cmath>

#include "../kernels.h"
#include "vec.h"

namespace swav::cpu::SWAV_ISA {
namespace {

struct Whole {};  // a full vector
struct Part {     // the first `count` lanes, of one vector or of several side by side
  int64_t count;
  bool has_before;  // a whole vector that ends with them lies in the same row
};

// The part of vector j of several
template <typename T>
inline Whole vector_of(Whole, int) {
  return {};
}
template <typename T>
inline Part vector_of(Part part, int j) {
  const int64_t count = part.count - j * kLanes<T>;
  // the vectors before this one are whole only if the row has so many elements
  const bool has_before = part.has_before || (j > 0 && part.count >= kLanes<T>);
  return {std::clamp<int64_t>(count, 0, kLanes<T>), has_before};
}

template <typename T>
inline Vec<T> get(const T* p, Whole, T) {
  return load(p);
}
template <typename T>
inline void put(T* p, Vec<T> v, Whole) {
  store(p, v);
}

#if defined(__GNUC__) && !defined(__clang__) && (defined(__AVX2__) || defined(__AVX512F__))
// The end of a row as the last lanes of a whole vector, and lanes rotated in a register: far
// cheaper than moving a number of bytes that is known at run time only
template <typename T>
inline Vec<T> get(const T* p, Part part, T fill) {
  if (!part.has_before) return load_part(p, part.count, fill);
  const typename VecTypes<T>::Integer missing = kLanes<T> - part.count;
  const Ints<T> lanes = lane_numbers<T>();
  const Vec<T> rotated = __builtin_shuffle(load(p - missing), lanes + missing);
  return lanes < kLanes<T> - missing ? rotated : splat(fill);
}
template <typename T>
inline void put(T* p, Vec<T> v, Part part) {
  if (!part.has_before) return store_part(p, v, part.count);
  const typename VecTypes<T>::Integer missing = kLanes<T> - part.count;
  const Ints<T> lanes = lane_numbers<T>();
  const Vec<T> rotated = __builtin_shuffle(v, lanes - missing);
  store<T>(p - missing, lanes < missing ? load(p - missing) : rotated);
}
#else
template <typename T>
inline Vec<T> get(const T* p, Part part, T fill) {
  return load_part(p, part.count, fill);
}
template <typename T>
inline void put(T* p, Vec<T> v, Part part) {
  store_part(p, v, part.count);
}
#endif

// body(k, width) for every vector of n elements, or for as many vectors side by side as are asked
// for; the last one may be a Part
template <typename T, int kVectors = 1, typename Body>
inline void over_vectors(int64_t n, const Body& body) {
  int64_t k = 0;
  for (; k + kVectors * kLanes<T> <= n; k += kVectors * kLanes<T>) body(k, Whole{});
  if (k < n) body(k, Part{n - k, k > 0});
}

// As above in blocks of at most kBlock vectors, after each of which flush() is called: a sum of
// blocks keeps its digits where one running sum would lose them
constexpr int64_t kBlock = 64;
template <typename T, int kVectors = 1, typename Body, typename Flush>
inline void over_blocks(int64_t n, const Body& body, const Flush& flush) {
  for (int64_t begin = 0; begin < n; begin += kBlock * kLanes<T>) {
    const int64_t size = n - begin < kBlock * kLanes<T> ? n - begin : kBlock * kLanes<T>;
    over_vectors<T, kVectors>(size, [&](int64_t k, auto width) { body(begin + k, width); });
    flush();
  }
}

// The largest norm of n rows [dim]; NaN if one holds NaN
template <typename T>
inline T largest_norm(const T* rows, int64_t n, int64_t dim) {
  T largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    Vec<T> sum{};
    over_vectors<T>(dim, [&](int64_t d, auto width) {
      const Vec<T> x = get(rows + i * dim + d, width, T(0));
      sum += x * x;
    });
    const T square = sum_lanes<T>(sum);
    if (square != square) return square;
    largest = std::max(largest, square);
  }
  return std::sqrt(largest);
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// By a product with 2^112, which is exact and makes subnormal numbers come out right too
inline float from_float16(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  float x;
  std::memcpy(&x, &shifted, sizeof x);
  x *= 5.192296858534828e33f;  // 2^112
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = magnitude >= 0x7c00u ? 0x7f800000u | shifted : bits;  // infinity and NaN
  bits |= uint32_t(half & 0x8000u) << 16;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The scores from `first` on
inline Scores problem(Scores scores, int64_t first) {
  const int64_t size = scores.dtype == Dtype::float64 ? 8 : scores.dtype == Dtype::float32 ? 4 : 2;
  return {static_cast<const char*>(scores.data) + first * size, scores.dtype};
}

// `count` scores from `first` on as T: in place where they are T already, else in `buffer`
template <typename T>
inline const T* read(Scores scores, int64_t first, int64_t count, T* buffer) {
  constexpr Dtype same = std::is_same_v<T, float> ? Dtype::float32 : Dtype::float64;
  if (scores.dtype == same) return static_cast<const T*>(scores.data) + first;
  if (scores.dtype == Dtype::float32) {
    const float* p = static_cast<const float*>(scores.data) + first;
    for (int64_t i = 0; i < count; ++i) buffer[i] = T(p[i]);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(scores.data) + first;
    if (scores.dtype == Dtype::bfloat16)
      for (int64_t i = 0; i < count; ++i) buffer[i] = T(from_bfloat16(p[i]));
    else
      for (int64_t i = 0; i < count; ++i) buffer[i] = T(from_float16(p[i]));
  }
  return buffer;
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
