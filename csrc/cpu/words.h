// What one step of a matrix product multiplies: a number, or a pair of bfloat16 numbers whose two
// exact products join a float32 sum at once.
#pragma once

#include "vec.h"

#ifdef __AVX512BF16__
#include <immintrin.h>  // bfloat16 products have no vector operator
#endif

namespace swav::cpu::SWAV_ISA {
namespace {

// Two bfloat16 numbers, the first in the low half
enum class Pair : uint32_t {};

// Vectors of words: as many as of the sums they are added to
template <typename T, typename W>
struct WordVector {
  using Type = Vec<T>;
};
template <typename T>
struct WordVector<T, Pair> {
  using Type = Ints<T>;
};

template <typename T, typename W>
inline typename WordVector<T, W>::Type load_words(const W* p) {
  typename WordVector<T, W>::Type v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline void add_product(Vec<T>& sum, Vec<T> y, T x) {
  sum += y * x;
}

// Terms that one word stands for
template <typename W>
constexpr int64_t kTerms = 1;
template <>
constexpr int64_t kTerms<Pair> = 2;

#ifdef __AVX512BF16__
constexpr bool kHasBfloat16 = true;

inline void add_product(Vec<float>& sum, Ints<float> y, Pair x) {
  const Ints<float> pairs = Ints<float>{} + int32_t(x);
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)y, (__m512bh)pairs);
}

// 16 numbers rounded to bfloat16
inline __m256i to_bfloat16(Vec<float> v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }

inline void store_bfloat16(Pair* p, Vec<float> v) {
  const __m256i halves = to_bfloat16(v);
  std::memcpy(p, &halves, sizeof halves);
}

inline void store_words(Pair* p, Ints<float> v) { std::memcpy(p, &v, sizeof v); }

// [first, second] numbers of each lane as pairs
inline Ints<float> interleave(Vec<float> first, Vec<float> second) {
  const __m512i low = _mm512_cvtepu16_epi32(to_bfloat16(first));
  const __m512i high = _mm512_cvtepu16_epi32(to_bfloat16(second));
  return (Ints<float>)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#else
constexpr bool kHasBfloat16 = false;
#endif

// What the kernels on features multiply: a set with bfloat16 products is compiled for them alone
template <typename T>
using FeatureWord = std::conditional_t<kHasBfloat16, Pair, T>;

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
