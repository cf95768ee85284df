// Sinkhorn over scores in memory, for any shape: sweeps that read the matrix and leave partial
// column sums for each slot of rows, and a kernel that adds them up to potentials. A maximum for
// each sample enters only where f already is in: anywhere else it would change the result.
#include "on_chip.h"
#include "potentials.cuh"

namespace swav::cuda {
namespace {

constexpr int kChunk = 8;               // logits of one column that a thread holds at once
constexpr int kRowGroup = 4;            // rows that share each access to f and to the column sums
constexpr int kRowChunk = 4;            // logits of one row that a thread holds at once
constexpr int kMostSlotRows = 128;      // of a running sum
constexpr int64_t kEnoughSlots = 256;   // blocks that keep any chip busy
constexpr int kColumnThreads = 256;     // a thread a column
constexpr int kMostRowThreads = 512;    // a block a row
constexpr int64_t kMostBlocks = 1 << 20;  // of codes(), each of which goes over many rows

// Rows of a problem in equal slots, from its size alone
struct Slots {
  int64_t rows, count;

  explicit Slots(int64_t num_samples) {
    rows = ceil_div(num_samples, kEnoughSlots);
    rows = rows < 1 ? 1 : rows > kMostSlotRows ? kMostSlotRows : rows;
    count = ceil_div(num_samples, rows);
  }
};

int row_threads(int64_t num_prototypes) {
  const int64_t wanted = ceil_div<int64_t>(ceil_div<int64_t>(num_prototypes, 8), kWarp) * kWarp;
  return int(wanted < kMostRowThreads ? wanted : kMostRowThreads);
}

int64_t column_tiles(int64_t num_prototypes, int width) {
  return ceil_div<int64_t>(num_prototypes, width);
}

// First sweep: top and sum of 2^(s scale + log w) over the rows of a slot. A block is a tile of
// columns of one slot; partial: [A, slots, 2, K].
template <typename S, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    column_stats_kernel(const S* scores, const T* sample_weights, T* partial, int64_t num_samples,
                        int64_t num_prototypes, T scale, Slots slots) {
  const int64_t tiles = ceil_div<int64_t>(num_prototypes, kColumnThreads);
  const int64_t k = blockIdx.x % tiles * kColumnThreads + threadIdx.x;
  const int64_t slot = blockIdx.x / tiles % slots.count, a = blockIdx.x / tiles / slots.count;
  if (k >= num_prototypes) return;
  const S* column = scores + a * num_samples * num_prototypes + k;
  const T* weights = sample_weights == nullptr ? nullptr : sample_weights + a * num_samples;
  const int64_t begin = slot * slots.rows;
  const int64_t end = begin + slots.rows < num_samples ? begin + slots.rows : num_samples;
  ExpSum<T> total = ExpSum<T>::empty();
  for (int64_t first = begin; first < end; first += kChunk) {
    T logits[kChunk];
    for (int i = 0; i < kChunk; ++i) {
      const int64_t b = first + i;
      logits[i] = -kInf<T>;
      if (b < end)
        logits[i] = fma(T(widen(column[b * num_prototypes])), scale,
                        weights == nullptr ? T(0) : log2(weights[b]));
    }
    total.add(logits);
  }
  T* out = partial + (a * slots.count + slot) * 2 * num_prototypes + k;
  out[0] = total.top;
  out[num_prototypes] = total.sum;
}

// Later sweeps: sum of w softmax_k(s scale + f f_scale) over the rows of a slot. A block is a slot, a
// thread owns every blockDim.x-th column; partial: [A, slots, K].
template <typename S, typename T>
__global__ void __launch_bounds__(kMostRowThreads)
    column_sums_kernel(const S* scores, const T* f, T f_scale, const T* sample_weights, T* partial,
                       int64_t num_samples, int64_t num_prototypes, T scale, Slots slots) {
  const int64_t slot = blockIdx.x % slots.count, a = blockIdx.x / slots.count;
  const int64_t begin = slot * slots.rows;
  const int64_t end = begin + slots.rows < num_samples ? begin + slots.rows : num_samples;
  f += a * num_prototypes;
  T* column_sums = partial + blockIdx.x * num_prototypes;
  for (int64_t first = begin; first < end; first += kRowGroup) {
    const S* rows = scores + (a * num_samples + first) * num_prototypes;
    const int group = int(end - first < kRowGroup ? end - first : kRowGroup);
    const auto logit = [&](int i, int64_t k, T potential) {
      return fma(T(widen(rows[i * num_prototypes + k])), scale, potential);
    };

    ExpSum<T> sums[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) sums[i] = ExpSum<T>::empty();
    for (int64_t start = threadIdx.x; start < num_prototypes; start += kRowChunk * blockDim.x) {
      T logits[kRowGroup][kRowChunk];
      for (int j = 0; j < kRowChunk; ++j) {
        const int64_t k = start + j * blockDim.x;
        const T potential = k < num_prototypes ? f[k] * f_scale : -kInf<T>;
        for (int i = 0; i < kRowGroup; ++i)
          logits[i][j] = i < group && k < num_prototypes ? logit(i, k, potential) : -kInf<T>;
      }
      for (int i = 0; i < kRowGroup; ++i) sums[i].add(logits[i]);
    }
    block_merge(sums);

    T factor[kRowGroup], shift[kRowGroup];
    for (int i = 0; i < kRowGroup; ++i) {
      const int64_t b = a * num_samples + first + i;
      const T weight = sample_weights == nullptr || i >= group ? T(1) : sample_weights[b];
      factor[i] = sums[i].sum == T(0) ? T(0) : weight / sums[i].sum;  // without prototypes: nothing
      shift[i] = sums[i].shift();
    }
    for (int64_t k = threadIdx.x; k < num_prototypes; k += blockDim.x) {
      const T potential = f[k] * f_scale;
      T sum = 0;
      for (int i = 0; i < kRowGroup; ++i)
        if (i < group) sum += exp2(logit(i, k, potential) - shift[i]) * factor[i];
      column_sums[k] = first == begin ? sum : column_sums[k] + sum;
    }
  }
}

// What becomes of the column sums [A, K] of all slots
template <typename T>
struct ColumnResult {
  T* column_max;                   // natural; null after a later sweep
  T* sums;                         // null if not wanted
  const T* log_prototype_weights;  // [K] or null
  T* f;                            // in base 2, updated; null if not wanted
};

template <bool kIsFirst, typename T>
__global__ void __launch_bounds__(kColumnThreads)
    combine_kernel(const T* partial, ColumnResult<T> result, int64_t num_prototypes,
                   int64_t num_slots) {
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
                            : next_potential(result.f[at], column.sum, log_r);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostRowThreads) finish_kernel(T* f, int64_t num_prototypes) {
  T* of_problem = f + blockIdx.x * num_prototypes;
  finish(of_problem, num_prototypes, of_problem);
}

enum class CodeKind { soft, hard, unnormalized };

// Codes of whole rows, a block a row; codes may be the scores themselves
template <typename S, typename T>
__global__ void __launch_bounds__(kMostRowThreads)
    codes_kernel(const S* scores, const T* f, T* codes, int64_t num_rows, int64_t num_samples,
                 int64_t num_prototypes, T scale, CodeKind kind) {
  for (int64_t b = blockIdx.x; b < num_rows; b += gridDim.x) {
    const S* row = scores + b * num_prototypes;
    const T* potentials = f + b / num_samples * num_prototypes;
    T* code = codes + b * num_prototypes;
    const auto logit = [&](int64_t k) {
      return fma(T(widen(row[k])), scale, potentials[k] * T(kLog2E));
    };
    const auto write = [&](const auto& value) {
      for (int64_t k = threadIdx.x; k < num_prototypes; k += blockDim.x) code[k] = value(k);
    };
    if (kind == CodeKind::unnormalized) {
      write([&](int64_t k) { return exp2(logit(k)); });
      continue;
    }

    ExpSum<T> sums[1] = {ExpSum<T>::empty()};
    for (int64_t start = threadIdx.x; start < num_prototypes; start += kChunk * blockDim.x) {
      T logits[kChunk];
      for (int i = 0; i < kChunk; ++i) {
        const int64_t k = start + i * blockDim.x;
        logits[i] = k < num_prototypes ? logit(k) : -kInf<T>;
      }
      sums[0].add(logits);
    }
    block_merge(sums);
    const ExpSum<T> total = sums[0];
    if (kind == CodeKind::soft) {
      const T inverse = T(1) / total.sum, shift = total.shift();
      write([&](int64_t k) { return exp2(logit(k) - shift) * inverse; });
    } else {
      int64_t winner = num_prototypes;  // the lowest index on ties
      for (int64_t k = threadIdx.x; k < num_prototypes && winner == num_prototypes; k += blockDim.x)
        if (logit(k) == total.top) winner = k;
      winner = block_min(winner);
      const T zero = total.sum > T(0) ? T(0) : kNaN<T>;
      write([&](int64_t k) { return k == winner ? zero + T(1) : zero; });
    }
  }
}

// The launches of one call
template <typename T>
class Launches {
 public:
  Launches(Scores scores, const T* sample_weights, void* workspace, const Sizes& sizes,
           double epsilon, Stream stream)
      : scores_(scores),
        sample_weights_(sample_weights),
        sizes_(sizes),
        scale_(T(kLog2E / epsilon)),
        stream_(stream),
        slots_(sizes.num_samples),
        exchange_(static_cast<T*>(workspace)),
        partial_(exchange_ + sizes.num_problems * sizes.num_prototypes) {}

  // column sums of f = null, or of f times f_scale in base 2
  Error sweep(const T* f, T f_scale, const ColumnResult<T>& result) const {
    const auto [a, n, k] = sizes_;
    const Error error = with_scores<T>(scores_, [&](const auto* scores) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(scores)>>;
      if (f == nullptr)
        return launch(column_stats_kernel<S, T>,
                      {a * slots_.count * column_tiles(k, kColumnThreads), kColumnThreads}, stream_,
                      scores, sample_weights_, partial_, n, k, scale_, slots_);
      return launch(column_sums_kernel<S, T>, {a * slots_.count, row_threads(k)}, stream_, scores,
                    f, f_scale, sample_weights_, partial_, n, k, scale_, slots_);
    });
    if (error != nullptr) return error;
    return launch(f == nullptr ? combine_kernel<true, T> : combine_kernel<false, T>,
                  {a * column_tiles(k, kWarp), kColumnThreads}, stream_, partial_, result, k,
                  slots_.count);
  }

  // f [A, K] in natural logarithms and codes [A, N, K]; codes may be null
  Error solve(const T* log_prototype_weights, T* f, T* codes, int iterations) const {
    const OnChipPlan plan = plan_on_chip(scores_.dtype, sizes_, stream_.device);
    if (plan.rows > 0)
      return sinkhorn_on_chip(scores_, sample_weights_, log_prototype_weights, f, codes, exchange_,
                              partial_, sizes_, scale_, iterations, plan, stream_);
    if (f == nullptr) f = exchange_;
    const ColumnResult<T> result{nullptr, nullptr, log_prototype_weights, f};
    for (int iteration = 0; iteration < iterations; ++iteration)
      if (const Error error = sweep(iteration == 0 ? nullptr : f, T(1), result)) return error;
    const auto [a, n, k] = sizes_;
    const Error error = launch(finish_kernel<T>, {a, kMostRowThreads}, stream_, f, k);
    if (error != nullptr || codes == nullptr) return error;
    return write_codes(f, codes, CodeKind::soft);
  }

  Error write_codes(const T* f, T* codes, CodeKind kind) const {
    const auto [a, n, k] = sizes_;
    return with_scores<T>(scores_, [&](const auto* scores) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(scores)>>;
      return launch(codes_kernel<S, T>, {std::min(a * n, kMostBlocks), row_threads(k)}, stream_,
                    scores, f, codes, a * n, n, k, scale_, kind);
    });
  }

 private:
  Scores scores_;
  const T* sample_weights_;
  Sizes sizes_;
  T scale_;
  Stream stream_;
  Slots slots_;
  T *exchange_, *partial_;
};

}  // namespace

int64_t sinkhorn_workspace(Dtype dtype, const Sizes& sizes, int device) {
  const int64_t slots =
      std::max(Slots(sizes.num_samples).count, plan_on_chip(dtype, sizes, device).blocks);
  return sizes.num_problems * sizes.num_prototypes * (1 + 2 * slots) *
         int64_t(dtype == Dtype::float64 ? sizeof(double) : sizeof(float));
}

template <typename T>
Error sinkhorn_column_stats(Scores scores, const T* sample_weights, T* column_max, T* column_sums,
                            void* workspace, const Sizes& sizes, double epsilon, Stream stream) {
  return on_device(stream, [&] {
    return Launches<T>(scores, sample_weights, workspace, sizes, epsilon, stream)
        .sweep(nullptr, T(1), {column_max, column_sums, nullptr, nullptr});
  });
}

template <typename T>
Error sinkhorn_column_sums(Scores scores, const T* f, const T* sample_weights, T* column_sums,
                           void* workspace, const Sizes& sizes, double epsilon, Stream stream) {
  return on_device(stream, [&] {
    return Launches<T>(scores, sample_weights, workspace, sizes, epsilon, stream)
        .sweep(f, T(kLog2E), {nullptr, column_sums, nullptr, nullptr});
  });
}

template <typename T>
Error sinkhorn_potentials(Scores scores, const T* sample_weights, const T* log_prototype_weights,
                          T* f, void* workspace, const Sizes& sizes, double epsilon, int iterations,
                          Stream stream) {
  return on_device(stream, [&] {
    return Launches<T>(scores, sample_weights, workspace, sizes, epsilon, stream)
        .solve(log_prototype_weights, f, nullptr, iterations);
  });
}

template <typename T>
Error sinkhorn_codes(Scores scores, const T* f, T* codes, const Sizes& sizes, double epsilon,
                     bool hard, bool normalized, Stream stream) {
  const CodeKind kind = hard         ? CodeKind::hard
                        : normalized ? CodeKind::soft
                                     : CodeKind::unnormalized;
  return on_device(stream, [&] {
    return Launches<T>(scores, nullptr, nullptr, sizes, epsilon, stream)
        .write_codes(f, codes, kind);
  });
}

template <typename T>
Error sinkhorn(Scores scores, T* codes, void* workspace, const Sizes& sizes, double epsilon,
               int iterations, Stream stream) {
  return on_device(stream, [&] {
    return Launches<T>(scores, nullptr, workspace, sizes, epsilon, stream)
        .solve(nullptr, nullptr, codes, iterations);
  });
}

}  // namespace swav::cuda
