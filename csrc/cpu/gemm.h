// Matrix products by register tiles: out[i, :] (+)= sum_t a(i, t) * b[t, :].
//
// One form serves all: `a` is read one number at a time with any strides, `b` in vectors along the
// output's rows. So scores, feature gradients and prototype gradients read features and prototypes
// as they lie; only samples that become vector lanes are packed.
#pragma once

#include <algorithm>

#include "rows.h"
#include "words.h"

namespace swav::cpu::SWAV_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;  // 32 registers: 6 x 4 sums, 4 of b, 1 of a
#else
constexpr int kTileVectors = 2;  // 16 registers: 6 x 2 sums
#endif
constexpr int kTileRows = 6;
template <typename T>
constexpr int64_t kPanel = kTileVectors * kLanes<T>;  // columns of b that are packed together
constexpr int64_t kSteps = 128;  // longest running sum, and what of b stays in the L1 cache

// a(i, t) = data[i * row + t * step]
template <typename W>
struct Strided {
  const W* data;
  int64_t row, step;
};

// R x C vectors of the output over `steps` words
template <typename T, int R, int C, typename W>
inline void tile(Strided<W> a, const W* b, int64_t b_stride, int64_t steps, T* out,
                 int64_t out_stride, int64_t valid, bool accumulate) {
  Vec<T> sum[R][C];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) {
      sum[i][j] = Vec<T>{};
      __builtin_prefetch(out + i * out_stride + j * kLanes<T>, 1);
    }
  for (int64_t t = 0; t < steps; ++t, b += b_stride) {
    typename WordVector<T, W>::Type y[C];
    for (int j = 0; j < C; ++j) y[j] = load_words<T>(b + j * kLanes<T>);
    for (int i = 0; i < R; ++i) {
      const W x = a.data[i * a.row + t * a.step];
      for (int j = 0; j < C; ++j) add_product(sum[i][j], y[j], x);
    }
  }
  const auto finish = [&](auto whole) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) {
        T* p = out + i * out_stride + j * kLanes<T>;
        if (whole) {
          store<T>(p, accumulate ? load(p) + sum[i][j] : sum[i][j]);
        } else if (const int64_t count = std::min<int64_t>(kLanes<T>, valid - j * kLanes<T>);
                   count > 0) {
          store_part<T>(p, accumulate ? load_part(p, count, T(0)) + sum[i][j] : sum[i][j], count);
        }
      }
  };
  if (valid >= C * kLanes<T>)
    finish(std::true_type{});
  else
    finish(std::false_type{});
}

template <typename T, int C, typename W>
inline void tile_column(Strided<W> a, const W* b, int64_t b_stride, int64_t steps, int64_t rows,
                        T* out, int64_t out_stride, int64_t valid, bool accumulate) {
  const auto run = [&](auto height, int64_t i) {
    tile<T, height, C>({a.data + i * a.row, a.row, a.step}, b, b_stride, steps,
                       out + i * out_stride, out_stride, valid, accumulate);
  };
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) run(std::integral_constant<int, kTileRows>{}, i);
  for (; i + 2 <= rows; i += 2) run(std::integral_constant<int, 2>{}, i);
  for (; i < rows; ++i) run(std::integral_constant<int, 1>{}, i);
}

// out [rows, columns] (+)= a [rows, steps] b [steps, columns], steps in words. Rows of b are padded
// to whole vectors (what the padding holds does not matter); rows of out need not be.
template <typename T, typename W>
inline void multiply(Strided<W> a, const W* b, int64_t b_stride, int64_t rows, int64_t columns,
                     int64_t steps, T* out, int64_t out_stride, bool accumulate) {
  for (int64_t t = 0; t < std::max<int64_t>(1, steps); t += kSteps) {
    const int64_t size = std::min(kSteps, steps - t);
    const Strided<W> part{a.data + t * a.step, a.row, a.step};
    const bool add = accumulate || t > 0;
    for (int64_t j = 0; j < columns;) {
      const W* panel = b + t * b_stride + j;
      const int64_t left = columns - j;
      if (left > (kTileVectors - 1) * kLanes<T>) {
        tile_column<T, kTileVectors>(part, panel, b_stride, size, rows, out + j, out_stride, left,
                                     add);
        j += kTileVectors * kLanes<T>;
      } else if (left > kLanes<T>) {
        tile_column<T, 2>(part, panel, b_stride, size, rows, out + j, out_stride, left, add);
        j += 2 * kLanes<T>;
      } else {
        tile_column<T, 1>(part, panel, b_stride, size, rows, out + j, out_stride, left, add);
        j += kLanes<T>;
      }
    }
  }
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
