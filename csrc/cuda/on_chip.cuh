// Sinkhorn in one cooperative launch: each block keeps its rows of the scores, as they are, in
// shared memory through all iterations. Only column sums cross the grid: as partials in memory,
// added up in a fixed order.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline.h>

#include "potentials.cuh"

namespace swav::cuda {

template <typename T>
constexpr int kThreads = sizeof(T) == 4 ? 768 : 512;  // 4 columns each at K = 3000
template <typename T>
constexpr int kPart = kWarp * kChunk<T>;  // columns of a row that a warp takes at once
constexpr size_t kVector = 16;            // bytes of an asynchronous copy

template <typename T>
struct alignas(2 * sizeof(T)) Row {
  T shift, factor;  // codes of the row are 2^(logit - shift) * factor
};

// What a block keeps in shared memory, in this order
template <typename S, typename T = SumOf<S>>
struct Layout {
  size_t exp_sums, rows, log_weights, f, scores, bytes;  // the scratch of the reductions is at 0

  __host__ __device__ Layout(int64_t num_rows, int64_t num_prototypes) {
    exp_sums = kThreads<T> * sizeof(double);
    rows = exp_sums + num_rows * ceil_div<int64_t>(num_prototypes, kPart<T>) * sizeof(ExpSum<T>);
    log_weights = rows + num_rows * sizeof(Row<T>);
    f = log_weights + num_rows * sizeof(T);
    scores = ceil_div(f + num_prototypes * sizeof(T), kVector) * kVector;
    bytes = scores + num_rows * num_prototypes * sizeof(S) + kVector;
  }
};

template <typename S, typename T = SumOf<S>>
struct Arguments {
  const S* scores;                 // [problems, N, K]
  const T* sample_weights;         // [problems, N] or null
  const T* log_prototype_weights;  // [K] or null
  T* f;                            // [problems, K] or null
  T* codes;                        // [problems, N, K] or null
  T* exchange;                     // [problems, K] potentials in base 2
  T* partial;                      // [problems, blocks, 2, K]
  int64_t num_samples;
  int num_prototypes, rows, blocks, iterations;
  T scale, level;  // as level_of() has it
};

// Bytes keep their place in a vector of 16, so that whole vectors can be copied at once
template <typename S, typename T = SumOf<S>>
__device__ inline const S* copy_to_shared(const S* source, int count, unsigned char* shared) {
  constexpr int kPerVector = kVector / sizeof(S);
  const int offset = int(reinterpret_cast<uintptr_t>(source) % kVector);
  S* target = reinterpret_cast<S*>(shared + offset);
  const int before = min(count, int((kVector - offset) % kVector / sizeof(S)));
  const int vectors = (count - before) / kPerVector;
  for (int i = threadIdx.x; i < vectors; i += kThreads<T>)
    __pipeline_memcpy_async(target + before + i * kPerVector, source + before + i * kPerVector,
                            kVector);
  __pipeline_commit();
  const int after = before + vectors * kPerVector;
  for (int i = threadIdx.x; i < before; i += kThreads<T>) target[i] = source[i];
  for (int i = after + threadIdx.x; i < count; i += kThreads<T>) target[i] = source[i];
  __pipeline_wait_prior(0);
  __syncthreads();
  return target;
}

// One block's rows of one problem
template <typename S, typename T = SumOf<S>>
struct Block {
  const S* scores;  // [rows, K], in shared memory as all but the weights
  T* f;             // [K] in base 2
  T* log_weights;   // [rows]
  ExpSum<T>* exp_sums;
  Row<T>* rows;
  const T* weights;  // [rows] or null
  int num_rows, num_prototypes;
  T scale;

  __device__ T score(int b, int k) const { return T(widen(scores[b * num_prototypes + k])); }
  __device__ T logit(int b, int k) const { return fma(score(b, k), scale, f[k]); }

  // body(row, part, the lane's first column of the part): a warp takes a part of a row
  template <typename Body>
  __device__ void over_parts(const Body& body) const {
    const int lane = threadIdx.x % kWarp, parts = ceil_div(num_prototypes, kPart<T>);
    for (int task = threadIdx.x / kWarp; task < num_rows * parts; task += kThreads<T> / kWarp)
      body(task / parts, task, task % parts * kPart<T> + lane);
  }

  // First sweep: a thread a column
  __device__ void column_stats(T* partial) const {
    for (int k = threadIdx.x; k < num_prototypes; k += kThreads<T>) {
      ExpSum<T> total = ExpSum<T>::empty();
      for (int first = 0; first < num_rows; first += kChunk<T>) {
        T logits[kChunk<T>];
        for (int i = 0; i < kChunk<T>; ++i) {
          const int b = first + i;
          logits[i] = b < num_rows ? fma(score(b, k), scale, log_weights[b]) : -kInf<T>;
        }
        total.add(logits);
      }
      partial[k] = total.top;
      partial[num_prototypes + k] = total.sum;
    }
  }

  // The softmax of every row; weight(row) in its factor, and if_empty where all logits are -inf
  template <typename Weight>
  __device__ void normalise(const Weight& weight, T if_empty) const {
    const int lane = threadIdx.x % kWarp, parts = ceil_div(num_prototypes, kPart<T>);
    over_parts([&](int b, int task, int first) {
      T logits[kChunk<T>];
      for (int i = 0; i < kChunk<T>; ++i) {
        const int k = first + i * kWarp;
        logits[i] = k < num_prototypes ? logit(b, k) : -kInf<T>;
      }
      ExpSum<T> part = ExpSum<T>::empty();
      part.add(logits);
      part = warp_merge(part);
      if (lane == 0) exp_sums[task] = part;
    });
    __syncthreads();
    for (int b = threadIdx.x / kWarp; b < num_rows; b += kThreads<T> / kWarp) {
      ExpSum<T> total = ExpSum<T>::empty();
      for (int part = lane; part < parts; part += kWarp) total.merge(exp_sums[b * parts + part]);
      total = warp_merge(total);
      if (lane == 0)
        rows[b] = {total.shift(), total.sum == T(0) ? if_empty : weight(b) / total.sum};
    }
    __syncthreads();
  }

  __device__ T code(int b, int k) const {
    return exp2(logit(b, k) - rows[b].shift) * rows[b].factor;
  }

  // Later sweeps
  __device__ void column_sums(T* partial) const {
    normalise([&](int b) { return weights == nullptr ? T(1) : weights[b]; }, T(0));
    for (int k = threadIdx.x; k < num_prototypes; k += kThreads<T>) {
      T total = 0;
      for (int first = 0; first < num_rows; first += kChunk<T>) {
        T sum = 0;
        for (int i = 0; i < kChunk<T>; ++i)
          if (first + i < num_rows) sum += code(first + i, k);
        total += sum;
      }
      partial[k] = total;
    }
  }

  __device__ void write_codes(T* codes) const {
    normalise([](int) { return T(1); }, kNaN<T>);
    over_parts([&](int b, int, int first) {
      for (int i = 0; i < kChunk<T>; ++i) {
        const int k = first + i * kWarp;
        if (k < num_prototypes) codes[int64_t(b) * num_prototypes + k] = code(b, k);
      }
    });
  }
};

// A tile of columns after the other, over the blocks of a problem: next(sum of column k, k)
template <bool kIsFirst, typename T, typename Next>
__device__ inline void combine(const T* partial, int num_prototypes, int block, int blocks,
                               double* scratch, const Next& next) {
  for (int first = block * kWarp; first < num_prototypes; first += blocks * kWarp) {
    const ExpSum<T> column =
        combine_columns<kIsFirst>(partial, blocks, num_prototypes, first, scratch);
    const int k = first + int(threadIdx.x);
    if (threadIdx.x < kWarp && k < num_prototypes) next(column, k);
  }
}

template <typename S, typename T = SumOf<S>>
__global__ void __launch_bounds__(kThreads<T>, 1) on_chip_kernel(Arguments<S> in) {
  extern __shared__ __align__(16) unsigned char shared[];
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  const int num_prototypes = in.num_prototypes, block = blockIdx.x % in.blocks;
  const int64_t problem = blockIdx.x / in.blocks, first_row = int64_t(block) * in.rows;
  const int64_t rows_left = in.num_samples - first_row;
  const int num_rows = int(rows_left < in.rows ? rows_left : in.rows);
  const int64_t first_of_all = problem * in.num_samples + first_row;
  const Layout<S> layout(in.rows, num_prototypes);
  double* scratch = reinterpret_cast<double*>(shared);
  T* partials = in.partial + problem * in.blocks * 2 * num_prototypes;
  T* exchange = in.exchange + problem * num_prototypes;
  Block<S> mine;
  mine.f = reinterpret_cast<T*>(shared + layout.f);
  mine.log_weights = reinterpret_cast<T*>(shared + layout.log_weights);
  mine.exp_sums = reinterpret_cast<ExpSum<T>*>(shared + layout.exp_sums);
  mine.rows = reinterpret_cast<Row<T>*>(shared + layout.rows);
  mine.weights = in.sample_weights == nullptr ? nullptr : in.sample_weights + first_of_all;
  mine.num_rows = num_rows;
  mine.num_prototypes = num_prototypes;
  mine.scale = in.scale;
  for (int b = threadIdx.x; b < num_rows; b += kThreads<T>)
    mine.log_weights[b] = mine.weights == nullptr ? T(0) : log2(mine.weights[b]);
  mine.scores = copy_to_shared(in.scores + first_of_all * num_prototypes, num_rows * num_prototypes,
                               shared + layout.scores);

  // all blocks have written what others read next
  const auto receive_potentials = [&] {
    grid.sync();
    for (int k = threadIdx.x; k < num_prototypes; k += kThreads<T>) mine.f[k] = exchange[k];
    __syncthreads();
  };
  mine.column_stats(partials + int64_t(block) * 2 * num_prototypes);
  grid.sync();
  combine<true>(partials, num_prototypes, block, in.blocks, scratch, [&](ExpSum<T> column, int k) {
    exchange[k] = first_potential(column, share(in.log_prototype_weights, k));
  });
  for (int iteration = 1; iteration < in.iterations; ++iteration) {
    receive_potentials();
    mine.column_sums(partials + int64_t(block) * num_prototypes);
    grid.sync();
    combine<false>(partials, num_prototypes, block, in.blocks, scratch,
                   [&](ExpSum<T> column, int k) {
                     const T log_r = share(in.log_prototype_weights, k);
                     exchange[k] = next_potential(exchange[k], column.sum, log_r, in.level);
                   });
  }
  receive_potentials();
  if (in.f != nullptr && block == 0)
    finish(mine.f, num_prototypes, in.f + problem * num_prototypes);
  if (in.codes != nullptr) mine.write_codes(in.codes + first_of_all * num_prototypes);
}

}  // namespace swav::cuda
