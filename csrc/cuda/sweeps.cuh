// The sweeps of the Sinkhorn over scores in memory: each reads the matrix and leaves partial column
// sums for each slot of rows; combine_kernel adds them up.
#pragma once

#include "potentials.cuh"

namespace swav::cuda {

constexpr int kColumnThreads = 256;  // a thread a column
template <typename T>
constexpr int kMostRowThreads = sizeof(T) == 4 ? 512 : 256;  // a block a row, or a few
constexpr int kRowGroup = 4;           // rows that share each access to f and to the column sums
constexpr int kRowChunk = 4;           // logits of each of them that a thread holds at once
constexpr int kMostSlotRows = 128;     // of a running sum
constexpr int64_t kEnoughSlots = 256;  // blocks that keep any chip busy

// The rows of a problem in equal slots, from its size alone
struct Slots {
  int64_t rows, count;

  explicit Slots(int64_t num_samples) {
    rows = ceil_div(num_samples, kEnoughSlots);
    rows = rows < 1 ? 1 : rows > kMostSlotRows ? kMostSlotRows : rows;
    count = ceil_div(num_samples, rows);
  }
};

template <typename S>
struct Sweep {
  const S* scores;                 // [A, N, K]
  const SumOf<S>* sample_weights;  // [A, N] or null
  SumOf<S>* partial;
  int64_t num_samples, num_prototypes;
  SumOf<S> scale;
  Slots slots;

  __device__ int64_t end_of(int64_t slot) const {
    const int64_t end = (slot + 1) * slots.rows;
    return end < num_samples ? end : num_samples;
  }
};

// First sweep: top and sum of 2^(s scale + log w) over the rows of a slot. A block is a tile of
// columns of one slot; partial: [A, slots, 2, K].
template <typename S, typename T = SumOf<S>>
__global__ void __launch_bounds__(kColumnThreads) column_stats_kernel(Sweep<S> in) {
  const int64_t n = in.num_samples, stride = in.num_prototypes;
  const int64_t tiles = ceil_div<int64_t>(stride, kColumnThreads);
  const int64_t k = blockIdx.x % tiles * kColumnThreads + threadIdx.x;
  const int64_t slot_of_all = blockIdx.x / tiles;
  const int64_t slot = slot_of_all % in.slots.count, a = slot_of_all / in.slots.count;
  if (k >= stride) return;
  const S* column = in.scores + a * n * stride + k;
  const T* weights = in.sample_weights == nullptr ? nullptr : in.sample_weights + a * n;
  const int64_t end = in.end_of(slot);
  ExpSum<T> total = ExpSum<T>::empty();
  for (int64_t first = slot * in.slots.rows; first < end; first += kChunk<T>) {
    T logits[kChunk<T>];
    for (int i = 0; i < kChunk<T>; ++i) {
      const int64_t b = first + i;
      logits[i] = -kInf<T>;
      if (b < end)
        logits[i] = fma(T(widen(column[b * stride])), in.scale,
                        weights == nullptr ? T(0) : log2(weights[b]));
    }
    total.add(logits);
  }
  T* out = in.partial + slot_of_all * 2 * stride + k;
  out[0] = total.top;
  out[stride] = total.sum;
}

// Later sweeps: sum of w softmax_k(s scale + f f_scale) over the rows of a slot. A block is a slot,
// a thread owns every blockDim.x-th column; partial: [A, slots, K].
template <typename S, typename T = SumOf<S>>
__global__ void __launch_bounds__(kMostRowThreads<T>)
    column_sums_kernel(Sweep<S> in, const T* f, T f_scale) {
  const int64_t stride = in.num_prototypes;
  const int64_t slot = blockIdx.x % in.slots.count, a = blockIdx.x / in.slots.count;
  const int64_t begin = slot * in.slots.rows, end = in.end_of(slot);
  f += a * stride;
  T* column_sums = in.partial + blockIdx.x * stride;
  for (int64_t first = begin; first < end; first += kRowGroup) {
    const int64_t first_of_all = a * in.num_samples + first;
    const S* rows = in.scores + first_of_all * stride;
    const int group = int(end - first < kRowGroup ? end - first : kRowGroup);
    const auto logit = [&](int i, int64_t k, T potential) {
      return fma(T(widen(rows[i * stride + k])), in.scale, potential);
    };

    ExpSum<T> sums[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) sums[i] = ExpSum<T>::empty();
    for (int64_t start = threadIdx.x; start < stride; start += kRowChunk * blockDim.x) {
      T logits[kRowGroup][kRowChunk];
      for (int j = 0; j < kRowChunk; ++j) {
        const int64_t k = start + j * blockDim.x;
        const T potential = k < stride ? f[k] * f_scale : T(0);
        for (int i = 0; i < kRowGroup; ++i)
          logits[i][j] = i < group && k < stride ? logit(i, k, potential) : -kInf<T>;
      }
      for (int i = 0; i < kRowGroup; ++i) sums[i].add(logits[i]);
    }
    block_merge(sums);

    T factor[kRowGroup], shift[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) {
      const bool has_weight = in.sample_weights != nullptr && i < group;
      const T weight = has_weight ? in.sample_weights[first_of_all + i] : T(1);
      factor[i] = sums[i].sum == T(0) ? T(0) : weight / sums[i].sum;  // no prototypes: adds nothing
      shift[i] = sums[i].shift();
    }
    for (int64_t k = threadIdx.x; k < stride; k += blockDim.x) {
      const T potential = f[k] * f_scale;
      T sum = 0;
      for (int i = 0; i < kRowGroup; ++i)
        if (i < group) sum += exp2(logit(i, k, potential) - shift[i]) * factor[i];
      column_sums[k] = first == begin ? sum : column_sums[k] + sum;
    }
  }
}

// What becomes of the column sums [A, K]
template <typename T>
struct ColumnResult {
  T* column_max;                   // natural; null after a later sweep
  T* sums;                         // null if not wanted
  const T* log_prototype_weights;  // [K] or null
  T level;                         // as level_of() has it
  T* f;                            // in base 2, updated; null if not wanted
};

// A block is a tile of kWarp columns of one problem
template <bool kIsFirst, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    combine_kernel(const T* partial, int64_t num_slots, int64_t num_prototypes,
                   ColumnResult<T> result) {
  __shared__ double scratch[kColumnThreads];
  const int64_t tiles = ceil_div<int64_t>(num_prototypes, kWarp);
  const int64_t first = blockIdx.x % tiles * kWarp, a = blockIdx.x / tiles;
  const ExpSum<T> column =
      combine_columns<kIsFirst>(partial + a * num_slots * (kIsFirst ? 2 : 1) * num_prototypes,
                                num_slots, num_prototypes, first, scratch);
  const int64_t k = first + threadIdx.x, at = a * num_prototypes + k;
  if (threadIdx.x >= kWarp || k >= num_prototypes) return;
  if (result.column_max != nullptr) result.column_max[at] = column.top * T(kLn2);
  if (result.sums != nullptr) result.sums[at] = column.sum;
  if (result.f != nullptr) {
    const T log_r = share(result.log_prototype_weights, k);
    result.f[at] = kIsFirst ? first_potential(column, log_r)
                            : next_potential(result.f[at], column.sum, log_r, result.level);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostRowThreads<T>) finish_kernel(T* f, int64_t num_prototypes) {
  T* of_problem = f + blockIdx.x * num_prototypes;
  finish(of_problem, num_prototypes, of_problem);
}

}  // namespace swav::cuda
