// A block of gradients [rows, lanes] and its products with prototypes and samples. What `lanes` is
// to numbers and pairs, [lanes, dim] partial gradients of the features, tiles hold as [dim, lanes].
#pragma once

#include "lanes.h"

namespace swav::cpu::SWAV_ISA {
namespace {

// Rows whose product with the prototypes is made at once; slots begin at multiples of them
template <typename W>
constexpr int64_t kWaitingRows = kUsesTiles<W> ? kDownRows : kBlockRows<W>;

template <typename T, typename W>
class GradientBlock {
 public:
  GradientBlock(int64_t lanes, int64_t dim)
      : lanes_(lanes),
        dim_(dim),
        along_copy_(kTerms<W> > 1 ? kBlockRows<W> * words<W>(lanes) * sizeof(W) : 0),
        across_copy_(kTerms<W> > 1 ? words<W>(kWaitingRows<W>) * lanes * sizeof(W) : 0),
        product_(kUsesTiles<W> ? kBlockRows<W> * round_up(dim, kTileSide) * sizeof(T) : 0) {}

  void set(const T* block, int64_t rows) {
    rows_ = rows;
    along_ = across_ = reinterpret_cast<const W*>(block);
    if constexpr (std::is_same_v<W, Pair> && kHasBfloat16) {
      along_ = along_copy_.template as<W>();
      across_ = across_copy_.template as<W>();
      const int64_t stride = words<W>(lanes_), end = steps<W>(rows) * kTerms<W>;
      for (int64_t k = 0; k < end; k += 2)
        for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
          const T* p = block + k * lanes_ + lane;
          const Vec<T> first = k < rows ? load(p) : Vec<T>{};
          const Vec<T> second = k + 1 < rows ? load(p + lanes_) : Vec<T>{};
          W* along = along_copy_.template as<W>() + k * stride + lane / 2;
          store_bfloat16(along, first);
          store_bfloat16(along + stride, second);
          store_words(across_copy_.template as<W>() + (waiting_ + k) / 2 * lanes_ + lane,
                      interleave(first, second));
        }
    }
  }

  // out = the sum over a slot's blocks of the block times its prototypes, which begin at `row`.
  // Sums of tiles are long in loading and storing, so several blocks wait for one product.
  void add_d_features(const Operand<T, W>& prototypes, int64_t row, T* out, bool is_first,
                      bool is_last) {
    if constexpr (kUsesTiles<W>) {
      if (is_first) has_product_ = false;
      if (waiting_ == 0) waiting_row_ = row;
      waiting_ += rows_;
      if (waiting_ < kWaitingRows<W> && !is_last) return;
      multiply_tiles(prototypes.down(waiting_row_), kDownRows / 2, across_copy_.template as<W>(),
                     lanes_, round_up(dim_, kTileSide), lanes_, steps<W>(waiting_), out, lanes_,
                     has_product_);
      has_product_ = true;
      waiting_ = 0;
    } else {
      multiply<T>(Strided<W>{across_, 1, lanes_}, prototypes.across(row),
                  prototypes.across_stride(), lanes_, dim_, words<W>(rows_), out, dim_, !is_first);
    }
  }

  // out [rows, dim] (+)= the block times the samples `across` [lanes, dim]
  void add_d_prototypes(const W* across, int64_t across_stride, T* out, bool accumulate) {
    if constexpr (kUsesTiles<W>) {
      T* product = product_.template as<T>();
      const int64_t stride = round_up(dim_, kTileSide);
      multiply_tiles(along_, words<W>(lanes_), across, across_stride, round_up(rows_, kTileSide),
                     stride, words<W>(lanes_), product, stride, false);
      for (int64_t k = 0; k < rows_; ++k)
        for (int64_t d = 0; d < dim_; ++d)
          out[k * dim_ + d] = (accumulate ? out[k * dim_ + d] : T(0)) + product[k * stride + d];
    } else {
      multiply<T>(Strided<W>{along_, words<W>(lanes_), 1}, across, across_stride, rows_, dim_,
                  words<W>(lanes_), out, dim_, accumulate);
    }
  }

 private:
  const int64_t lanes_, dim_;
  int64_t rows_ = 0;
  int64_t waiting_ = 0, waiting_row_ = 0;  // rows of tiles without a product, the first of them
  bool has_product_ = false;
  Scratch along_copy_, across_copy_, product_;
  const W *along_ = nullptr, *across_ = nullptr;
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
