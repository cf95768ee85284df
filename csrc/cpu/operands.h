// Matrices as the two sides of multiply(): numbers one at a time, or vectors along the rows.
#pragma once

#include "gemm.h"
#include "scratch.h"

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

// Rows [n, dim] for products that sum over dim (`along`) or over the rows (`across`). Numbers are
// read where they lie if that serves; pairs are always a copy.
template <typename T, typename W>
class Operand {
 public:
  Operand(const T* rows, int64_t n, int64_t dim, bool is_summed_along, bool is_summed_across)
      : along_stride_(words<W>(dim)),
        across_stride_(round_up(dim, kLanes<T>)),
        copies_along_(is_summed_along && kTerms<W> > 1),
        copies_across_(is_summed_across && (kTerms<W> > 1 || dim != across_stride_)),
        along_copy_(copies_along_ ? n * along_stride_ * sizeof(W) : 0),
        across_copy_(copies_across_ ? words<W>(n) * across_stride_ * sizeof(W) : 0),
        along_(copies_along_ ? along_copy_.as<W>() : reinterpret_cast<const W*>(rows)),
        across_(copies_across_ ? across_copy_.as<W>() : reinterpret_cast<const W*>(rows)) {
    for (int64_t i = 0; copies_along_ && i < n; ++i)
      for (int64_t t = 0; t < along_stride_; ++t) {
        const T* terms = rows + i * dim + t * kTerms<W>;
        const bool has_second = (t + 1) * kTerms<W> <= dim;
        along_copy_.as<W>()[i * along_stride_ + t] =
            make_word<W>(terms[0], has_second ? terms[kTerms<W> - 1] : T(0));
      }
    if (copies_across_)
      copy_across<T>(n, dim, [&](int64_t i) { return rows + i * dim; }, across_copy_.as<W>());
  }

  // From a row on; `across` from an even one
  Strided<W> along(int64_t row) const { return {along_ + row * along_stride_, along_stride_, 1}; }
  const W* across(int64_t row) const { return across_ + row / kTerms<W> * across_stride_; }
  int64_t across_stride() const { return across_stride_; }

 private:
  const int64_t along_stride_, across_stride_;
  const bool copies_along_, copies_across_;
  Scratch along_copy_, across_copy_;
  const W *along_, *across_;
};

// A block [rows, lanes] of gradients as the left side of both products
template <typename T, typename W>
class GradientBlock {
 public:
  GradientBlock(int64_t most_rows, int64_t lanes)
      : lanes_(lanes),
        along_copy_(kTerms<W> > 1 ? most_rows * words<W>(lanes) * sizeof(W) : 0),
        across_copy_(kTerms<W> > 1 ? words<W>(most_rows) * lanes * sizeof(W) : 0) {}

  void set(const T* block, [[maybe_unused]] int64_t rows) {
    if constexpr (std::is_same_v<W, Pair> && kHasBfloat16) {
      for (int64_t k = 0; k < rows; k += 2)
        for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
          const Vec<T> first = load(block + k * lanes_ + lane);
          const Vec<T> second = k + 1 < rows ? load(block + (k + 1) * lanes_ + lane) : Vec<T>{};
          const int64_t word = k * words<W>(lanes_) + lane / 2;
          store_bfloat16(along_copy_.as<W>() + word, first);
          store_bfloat16(along_copy_.as<W>() + word + words<W>(lanes_), second);
          store_words(across_copy_.as<W>() + k / 2 * lanes_ + lane, interleave(first, second));
        }
      along_ = along_copy_.as<W>();
      across_ = across_copy_.as<W>();
    } else {
      along_ = across_ = reinterpret_cast<const W*>(block);
    }
  }

  Strided<W> by_lane() const { return {across_, 1, lanes_}; }                // sums prototypes
  Strided<W> by_prototype() const { return {along_, words<W>(lanes_), 1}; }  // sums lanes

 private:
  const int64_t lanes_;
  Scratch along_copy_, across_copy_;
  const W *along_ = nullptr, *across_ = nullptr;
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
