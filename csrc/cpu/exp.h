// Vector exp2 and log2: relative error within 1.5e-7 (float) and 4e-16 (double).
//
// Base 2 everywhere inside the kernels: s / epsilon * log2(e) costs one multiplication with a
// folded constant, and reducing the argument of exp2 is exact.
#pragma once

#include "vec.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

template <typename T>
struct FloatBits;
template <>
struct FloatBits<float> {
  static constexpr int kMantissa = 23;
  static constexpr int kBias = 127;
  static constexpr float kSmallestExponent = -125.f;   // below it exp2 is 0
  static constexpr float kRound = 12582912.f + 127.f;  // 1.5 * 2^23: adding it rounds
  // minimax of 2^x on [-1/2, 1/2], highest power first; relative error 1.9e-9
  static constexpr float kExp2[] = {1.534582055e-04f,
                                    1.339993126e-03f,
                                    9.618488923e-03f,
                                    5.550328777e-02f,
                                    2.402264689e-01f,
                                    6.931472057e-01f,
                                    1.f};
  static constexpr int kLog2Terms = 5;
};
template <>
struct FloatBits<double> {
  static constexpr int kMantissa = 52;
  static constexpr int kBias = 1023;
  static constexpr double kSmallestExponent = -1021.;
  static constexpr double kRound = 6755399441055744. + 1023.;  // 1.5 * 2^52
  // relative error 3.1e-18
  static constexpr double kExp2[] = {
      4.4352807031925459592e-10, 7.0741055798305341942e-9, 1.0178198035371477308e-7,
      1.321543308990612687e-6,   1.5252733489955560676e-5, 1.5403530462513906055e-4,
      1.3333558146789954566e-3,  9.6181291075883356971e-3, 5.5504108664819921482e-2,
      2.4022650695910156203e-1,  6.9314718055994533046e-1, 1.};
  static constexpr int kLog2Terms = 12;
};

// 2^(n + fraction), where n is the number that `shifted` = n + kRound was rounded to
template <typename T>
inline Vec<T> exp2_parts(Vec<T> shifted, Vec<T> fraction) {
  using Bits = FloatBits<T>;
  Vec<T> p = splat(Bits::kExp2[0]);
  for (size_t i = 1; i < sizeof(Bits::kExp2) / sizeof(T); ++i) p = p * fraction + Bits::kExp2[i];
  Ints<T> exponent;  // in the low bits of `shifted`, with its bias
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent <<= Bits::kMantissa;
  Vec<T> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

// 2^x for x up to the largest exponent; 0 for very negative x and -inf, NaN for NaN and +inf
template <typename T>
inline Vec<T> exp2(Vec<T> x) {
  using Bits = FloatBits<T>;
  const Vec<T> shifted = x + Bits::kRound;
  const Vec<T> result = exp2_parts<T>(shifted, x - (shifted - Bits::kRound));
  return x < Bits::kSmallestExponent ? Vec<T>{} : result;
}

// 2^(x scale) for products of moderate size, anything for others. The product is not rounded where
// the processor has fused multiply-add, so a large one loses no digits.
template <typename T>
inline Vec<T> exp2_product(Vec<T> x, T scale) {
  using Bits = FloatBits<T>;
  const Vec<T> shifted = x * scale + Bits::kRound;
  return exp2_parts<T>(shifted, x * scale - (shifted - Bits::kRound));
}

// log2 of positive normal numbers; anything for others
template <typename T>
inline Vec<T> log2(Vec<T> x) {
  using Bits = FloatBits<T>;
  Ints<T> bits;
  std::memcpy(&bits, &x, sizeof bits);
  // the exponent that leaves a mantissa in [sqrt(1/2), sqrt(2))
  const T sqrt_half = T(0.70710678118654752440);
  Ints<T> offset;
  const Vec<T> root = splat(sqrt_half);
  std::memcpy(&offset, &root, sizeof offset);
  const Ints<T> exponent = (bits - offset) >> Bits::kMantissa;
  bits -= exponent << Bits::kMantissa;
  Vec<T> m;
  std::memcpy(&m, &bits, sizeof m);
  // log2 m = 2 / ln 2 artanh(r), r = (m - 1) / (m + 1), |r| < 0.172
  const Vec<T> r = (m - T(1)) / (m + T(1)), r2 = r * r;
  Vec<T> series = splat(T(1) / T(2 * Bits::kLog2Terms - 1));
  for (int i = Bits::kLog2Terms - 2; i >= 0; --i) series = series * r2 + T(1) / T(2 * i + 1);
  return __builtin_convertvector(exponent, Vec<T>) + r * series * T(2 * kLog2E);
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
