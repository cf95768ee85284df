// Matrices as the two sides of multiply(): numbers one at a time, or vectors along the rows.
#pragma once

#include "gemm.h"
#include "scratch.h"
#include "tiles.h"

namespace swav::cpu::SWAV_ISA {
namespace {

// Words for a number of terms
template <typename W>
constexpr int64_t words(int64_t terms) {
  return (terms + kTerms<W> - 1) / kTerms<W>;
}

// The word of one term, or of two that are bfloat16 numbers already
template <typename W, typename T>
inline W make_word(T first, [[maybe_unused]] T second) {
  if constexpr (std::is_same_v<W, Pair>) {
    uint32_t low, high;
    std::memcpy(&low, &first, sizeof low);
    std::memcpy(&high, &second, sizeof high);
    return Pair(low >> 16 | (high & 0xffff0000u));
  } else {
    return first;
  }
}

// Words that a sum over a number of terms runs through: whole tiles, filled up with zeros
template <typename W>
constexpr int64_t steps(int64_t terms) {
  return kUsesTiles<W> ? round_up(words<W>(terms), kTileSide) : words<W>(terms);
}

// Words 0, 1, ... of the terms data[0], data[step], ..., and zeros up to `count`
template <typename T, typename W>
inline void copy_words(const T* data, int64_t step, int64_t terms, int64_t count, W* out) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t first = t * kTerms<W>, second = first + kTerms<W> - 1;
    out[t] = make_word<W>(first < terms ? data[first * step] : T(0),
                          second < terms ? data[second * step] : T(0));
  }
}

// n rows [dim] as the vectors of multiply(), padded by zeros to whole vectors; row(i) may be null
template <typename T, typename W, typename Row>
inline void copy_across(int64_t n, int64_t dim, const Row& row, W* out) {
  const int64_t stride = round_up(dim, kLanes<T>);
  for (int64_t i = 0; i < n; i += kTerms<W>, out += stride) {
    const T *first = row(i), *second = i + kTerms<W> <= n ? row(i + kTerms<W> - 1) : nullptr;
    for (int64_t d = 0; d < dim; ++d)
      out[d] = make_word<W>(first ? first[d] : T(0), second ? second[d] : T(0));
    std::fill(out + dim, out + stride, W(0));
  }
}

// Prototypes in a block of the `down` form [dim, words]
constexpr int64_t kDownRows = 256;

// The prototypes [n, dim] for products that sum over dim (`along`) and over prototypes (`across`,
// or `down` for tiles, whose left side has its words in a row). Numbers are read where they lie if
// that serves; pairs are always a copy.
template <typename T, typename W>
class Operand {
 public:
  Operand(const T* rows, int64_t n, int64_t dim, bool is_summed_along, bool is_summed_across)
      : along_stride_(steps<W>(dim)),
        across_stride_(round_up(dim, kLanes<T>)),
        copies_along_(is_summed_along && kTerms<W> > 1),
        copies_across_(is_summed_across && !kUsesTiles<W> &&
                       (kTerms<W> > 1 || dim != across_stride_)),
        copies_down_(is_summed_across && kUsesTiles<W>),
        along_copy_(copies_along_ ? round_up(n, kTileSide) * along_stride_ * sizeof(W) : 0),
        across_copy_(copies_across_ ? words<W>(n) * across_stride_ * sizeof(W)
                     : copies_down_ ? round_up(n, kDownRows) * across_stride_ / 2 * sizeof(W)
                                    : 0),
        along_(copies_along_ ? along_copy_.as<W>() : reinterpret_cast<const W*>(rows)),
        across_(copies_across_ ? across_copy_.as<W>() : reinterpret_cast<const W*>(rows)) {
    for (int64_t i = 0; copies_along_ && i < round_up(n, kTileSide); ++i)
      copy_words(rows + i * dim, 1, i < n ? dim : 0, along_stride_,
                 along_copy_.as<W>() + i * along_stride_);
    if (copies_across_)
      copy_across<T>(n, dim, [&](int64_t i) { return rows + i * dim; }, across_copy_.as<W>());
    for (int64_t row = 0; copies_down_ && row < n; row += kDownRows)
      for (int64_t d = 0; d < across_stride_; ++d)
        copy_words(rows + row * dim + d, dim, d < dim ? n - row : 0, kDownRows / 2,
                   across_copy_.as<W>() + row / 2 * across_stride_ + d * (kDownRows / 2));
  }

  // From a row on: `across` from an even one, `down` from a multiple of kDownRows
  Strided<W> along(int64_t row) const { return {along_ + row * along_stride_, along_stride_, 1}; }
  const W* across(int64_t row) const { return across_ + row / kTerms<W> * across_stride_; }
  int64_t across_stride() const { return across_stride_; }
  const W* down(int64_t row) const { return across_copy_.as<W>() + row / 2 * across_stride_; }

 private:
  const int64_t along_stride_, across_stride_;
  const bool copies_along_, copies_across_, copies_down_;
  Scratch along_copy_, across_copy_;
  const W *along_, *across_;
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
