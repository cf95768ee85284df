// Scores of a chunk of samples, computed and never stored beyond it: [K, lanes], a sample a lane.
//
// Prototypes are the rows of this matrix, so a product reads them as they lie, all sums over
// prototypes are vector additions without a horizontal one, and threads share a chunk by slots of
// prototypes: the prototypes' gradients need no atomics.
#pragma once

#include "exp.h"
#include "operands.h"
#include "parallel.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kMostSlots = 16;
// Prototypes at a time: a block stays in the L1 cache
template <typename W>
constexpr int64_t kBlockRows = kUsesTiles<W> ? 4 * kTileSide : 8 * kTileRows;

// Samples [count, dim] as lanes: panels [words of dim, kPanel] of zero-padded columns
template <typename T, typename W>
constexpr int64_t packed_size(int64_t lanes, int64_t dim) {
  return round_up(lanes, kPanel<T>) * steps<W>(dim);
}

// Lane `lane` of the packed chunk becomes `sample` [dim], or zero if that is null
template <typename T, typename W>
inline void pack_lane(const T* sample, int64_t lane, int64_t dim, W* packed) {
  const int64_t count = steps<W>(dim);
  W* column = packed + lane / kPanel<T> * kPanel<T> * count + lane % kPanel<T>;
  for (int64_t t = 0; t < count; ++t)
    copy_words(sample + t * kTerms<W>, 1, sample == nullptr ? 0 : dim - t * kTerms<W>, 1,
               column + t * kPanel<T>);
}

// scores [rows, lanes] = prototypes [rows, dim] times packed samples. Tiles write whole ones: up to
// 15 more rows.
template <typename T, typename W>
inline void block_scores(Strided<W> prototypes, const W* packed, int64_t rows, int64_t lanes,
                         int64_t dim, T* scores) {
  for (int64_t lane = 0; lane < lanes; lane += kPanel<T>) {
    const W* panel = packed + lane * steps<W>(dim);
    const int64_t columns = std::min(kPanel<T>, lanes - lane);
    if constexpr (kUsesTiles<W>)
      multiply_tiles(prototypes.data, prototypes.row, panel, kPanel<T>, round_up(rows, kTileSide),
                     columns, steps<W>(dim), scores + lane, lanes, false);
    else
      multiply<T>(prototypes, panel, kPanel<T>, rows, columns, steps<W>(dim), scores + lane, lanes,
                  false);
  }
}

// Running maximum and sum of 2^logit of every lane: log-sum-exp without a second visit
template <typename T>
struct LaneSums {
  T* top;  // [lanes]
  T* sum;

  void clear(int64_t lanes) const {
    std::fill(top, top + lanes, -kInf<T>);
    std::fill(sum, sum + lanes, T(0));
  }

  // rows of logits s scale + bias[row] (bias may be null), for one vector of lanes at scores
  void add(const T* scores, int64_t rows, int64_t stride, T scale, const T* bias,
           int64_t lane) const {
    const Vec<T> old_top = load(top + lane);
    Vec<T> new_top = old_top, block_sum{};
    for (int64_t k = 0; k < rows; ++k)
      new_top = larger<T>(load(scores + k * stride) * scale + (bias ? bias[k] : T(0)), new_top);
    const Vec<T> shift = new_top == -kInf<T> ? Vec<T>{} : new_top;
    for (int64_t k = 0; k < rows; ++k)
      block_sum += exp2<T>(load(scores + k * stride) * scale + (bias ? bias[k] : T(0)) - shift);
    store(top + lane, new_top);
    store<T>(sum + lane, load(sum + lane) * exp2<T>(old_top - shift) + block_sum);
  }

  // Join with the sums over other prototypes
  void merge(const LaneSums& other, int64_t lanes) const {
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
      const Vec<T> a = load(top + lane), b = load(other.top + lane), both = larger<T>(a, b);
      const Vec<T> shift = both == -kInf<T> ? Vec<T>{} : both;
      store<T>(sum + lane,
               load(sum + lane) * exp2<T>(a - shift) + load(other.sum + lane) * exp2<T>(b - shift));
      store(top + lane, both);
    }
  }

  // log2 of the sum; -inf where all logits were -inf, NaN where one was NaN or +inf
  Vec<T> log_sum(int64_t lane) const {
    const Vec<T> total = load(sum + lane), most = load(top + lane);
    const Vec<T> finite = most + log2<T>(total);
    return total == T(0) ? splat(-kInf<T>) : (total < kInf<T> ? finite : splat(kNaN<T>));
  }
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
