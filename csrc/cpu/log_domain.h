// Sinkhorn in the log domain, for any scores: f = -log sum_b exp(s / epsilon) with a maximum for
// each prototype, then f -= log sum_b softmax_k(s / epsilon + f).
//
// A maximum for each sample may enter only where f already is in: anywhere else it would change the
// result. Rows are dealt out in fixed slots; a slot sums its columns in blocks, and the slots are
// combined in order.
#pragma once

#include "parallel.h"
#include "potentials.h"
#include "row_groups.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kTileColumns = 512;  // of the first sweep: a block of rows stays in the L2 cache

// The first sweep of rows [begin, end) over columns [0, n): running maxima and sums, in base 2
template <typename T>
void slot_stats(Scores scores, int64_t first, int64_t stride, int64_t n, const T* weights,
                int64_t begin, int64_t end, T scale, T* best, T* sums) {
  Scratch converted(kSlotRows * kTileColumns * sizeof(T)), block(kTileColumns * sizeof(T));
  const T* rows[kSlotRows];
  T offset[kSlotRows];  // log w
  T* block_max = block.as<T>();
  T block_sums[kTileColumns];
  for (int64_t block_begin = begin; block_begin < end; block_begin += kSlotRows) {
    const int64_t size = std::min(kSlotRows, end - block_begin);
    for (int64_t j = 0; j < size; ++j) {
      const int64_t row = block_begin + j;
      offset[j] = weights == nullptr ? T(0) : std::log2(weights[row]);
      rows[j] = read(scores, first + row * stride, n, converted.as<T>() + j * kTileColumns);
    }
    std::copy(best, best + round_up(n, kLanes<T>), block_max);
    in_groups(0, size, [&](auto group, int64_t j) {
      over_vectors<T>(n, [&](int64_t k, auto width) {
        Vec<T> top = load(block_max + k);
        for (int i = 0; i < group; ++i)
          top = larger<T>(get(rows[j + i] + k, width, -kInf<T>) * scale + offset[j + i], top);
        store(block_max + k, top);
      });
    });
    std::fill(block_sums, block_sums + kTileColumns, T(0));
    in_groups(0, size, [&](auto group, int64_t j) {
      over_vectors<T>(n, [&](int64_t k, auto width) {
        const Vec<T> top = load(block_max + k), shift = top == -kInf<T> ? Vec<T>{} : top;
        Vec<T> sum = load(block_sums + k);
        for (int i = 0; i < group; ++i)
          sum += exp2<T>(get(rows[j + i] + k, width, -kInf<T>) * scale + offset[j + i] - shift);
        store(block_sums + k, sum);
      });
    });
    over_vectors<T>(round_up(n, kLanes<T>), [&](int64_t k, auto) {
      const Vec<T> top = load(block_max + k), shift = top == -kInf<T> ? Vec<T>{} : top;
      store(sums + k, load(sums + k) * exp2<T>(load(best + k) - shift) + load(block_sums + k));
      store(best + k, top);
    });
  }
}

template <typename T>
void column_stats(Scores scores, const T* sample_weights, T* column_max, T* column_sums,
                  int64_t num_problems, int64_t num_samples, int64_t num_prototypes, T scale,
                  int threads) {
  const Pieces slots(num_samples, kMostSlots, kSlotRows);
  const Pieces tiles(num_prototypes, num_prototypes, kTileColumns);
  const int64_t tile_size = num_problems * slots.count * 2 * kTileColumns;
  Scratch partial(std::max<int64_t>(1, tile_size * tiles.count) * sizeof(T));
  const auto partial_of = [&](int64_t a, int64_t tile, int64_t slot) {
    return partial.as<T>() + ((a * tiles.count + tile) * slots.count + slot) * 2 * kTileColumns;
  };
  parallel_for(num_problems * tiles.count * slots.count, threads, [&](int64_t task) {
    const int64_t slot = task % slots.count, a = task / slots.count / tiles.count;
    const int64_t tile = task / slots.count % tiles.count, begin = tiles.begin(tile);
    T* best = partial_of(a, tile, slot);
    std::fill(best, best + kTileColumns, -kInf<T>);
    std::fill(best + kTileColumns, best + 2 * kTileColumns, T(0));
    slot_stats<T>(scores, a * num_samples * num_prototypes + begin, num_prototypes,
                  tiles.end(tile) - begin,
                  sample_weights == nullptr ? nullptr : sample_weights + a * num_samples,
                  slots.begin(slot), slots.end(slot), scale, best, best + kTileColumns);
  });
  parallel_for(num_problems * tiles.count, threads, [&](int64_t task) {
    const int64_t a = task / tiles.count, tile = task % tiles.count, begin = tiles.begin(tile);
    const int64_t first = a * num_prototypes + begin;
    over_vectors<T>(tiles.end(tile) - begin, [&](int64_t k, auto width) {
      Vec<T> top = splat(-kInf<T>), sum{};
      for (int64_t slot = 0; slot < slots.count; ++slot)
        top = larger<T>(load(partial_of(a, tile, slot) + k), top);
      const Vec<T> shift = top == -kInf<T> ? Vec<T>{} : top;
      for (int64_t slot = 0; slot < slots.count; ++slot) {
        const T* best = partial_of(a, tile, slot) + k;
        sum += load(best + kTileColumns) * exp2<T>(load(best) - shift);
      }
      put(column_max + first + k, top, width);
      put(column_sums + first + k, sum, width);
    });
  });
}

// e = 2^(s scale + f - its maximum) of one row, which e may overwrite; returns the sum of e, NaN if
// a logit is NaN or +inf, 0 if all are -inf. f is padded to whole vectors.
template <typename T>
T exp_row(const T* row, const T* f, int64_t n, T scale, T* e) {
  Vec<T> top = splat(-kInf<T>);
  over_vectors<T>(n, [&](int64_t k, auto width) {
    top = larger<T>(get(row + k, width, -kInf<T>) * scale + load(f + k), top);
  });
  const T largest = largest_lane<T>(top), shift = largest == -kInf<T> ? T(0) : largest;
  Vec<T> total{}, block{};
  over_blocks<T>(
      n,
      [&](int64_t k, auto width) {
        const Vec<T> x = exp2<T>(get(row + k, width, -kInf<T>) * scale + load(f + k) - shift);
        block += x;
        put(e + k, x, width);
      },
      [&] {
        total += block;
        block = Vec<T>{};
      });
  return sum_lanes<T>(total);
}

// f in base 2, padded to whole vectors
template <typename T>
void pad_rows(const T* f, int64_t num_problems, int64_t n, T factor, T* padded) {
  const int64_t stride = round_up(n, kLanes<T>);
  for (int64_t a = 0; a < num_problems; ++a) {
    scale_all(f + a * n, factor, n, padded + a * stride);
    std::fill(padded + a * stride + n, padded + (a + 1) * stride, T(0));
  }
}

// f is padded and in base 2
template <typename T>
void column_sums(Scores scores, const T* f, const T* sample_weights, T* sums, int64_t num_problems,
                 int64_t num_samples, int64_t num_prototypes, T scale, int threads) {
  const Pieces slots(num_samples, kMostSlots, kSlotRows);
  const int64_t stride = round_up(num_prototypes, kLanes<T>);
  Scratch partial(std::max<int64_t>(1, num_problems * slots.count * stride) * sizeof(T));
  parallel_for(num_problems * slots.count, threads, [&](int64_t task) {
    const int64_t a = task / slots.count, slot = task % slots.count;
    Scratch converted(stride * sizeof(T)), exps(kGroupRows * stride * sizeof(T));
    Scratch block(stride * sizeof(T));
    T *e = exps.as<T>(), *block_sums = block.as<T>();
    T* slot_sums = partial.as<T>() + task * stride;
    std::fill(slot_sums, slot_sums + stride, T(0));
    for (int64_t begin = slots.begin(slot); begin < slots.end(slot); begin += kSlotRows) {
      std::fill(block_sums, block_sums + stride, T(0));
      in_groups(begin, std::min(slots.end(slot), begin + kSlotRows), [&](auto group, int64_t b) {
        T factor[kGroupRows];
        for (int i = 0; i < group; ++i) {
          const int64_t row = a * num_samples + b + i;
          const T sum =
              exp_row(read(scores, row * num_prototypes, num_prototypes, converted.as<T>()),
                      f + a * stride, num_prototypes, scale, e + i * stride);
          const T weight = sample_weights == nullptr ? T(1) : sample_weights[row];
          factor[i] = sum == T(0) ? T(0) : weight / sum;  // a row without prototypes adds nothing
        }
        over_vectors<T>(num_prototypes, [&](int64_t k, auto width) {
          Vec<T> sum = load(block_sums + k);
          for (int i = 0; i < group; ++i) sum += get(e + i * stride + k, width, T(0)) * factor[i];
          store(block_sums + k, sum);
        });
      });
      for (int64_t k = 0; k < stride; ++k) slot_sums[k] += block_sums[k];
    }
  });
  for (int64_t a = 0; a < num_problems; ++a) {
    T* total = sums + a * num_prototypes;
    std::fill(total, total + num_prototypes, T(0));
    for (int64_t slot = 0; slot < slots.count; ++slot) {
      const T* slot_sums = partial.as<T>() + (a * slots.count + slot) * stride;
      for (int64_t k = 0; k < num_prototypes; ++k) total[k] += slot_sums[k];
    }
  }
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
