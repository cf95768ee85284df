// Sinkhorn over scores on a GPU: in one launch where the problem fits on the chip, else sweeps over
// scores in memory. Every call is a fixed sequence of launches, without a look at the data.
#include <algorithm>

#include "codes.cuh"
#include "on_chip.h"

namespace swav::cuda {
namespace {

constexpr int64_t kMostBlocks = 1 << 20;  // of codes_kernel

template <typename T>
int row_threads(int64_t num_prototypes) {
  const int64_t threads = ceil_div<int64_t>(ceil_div<int64_t>(num_prototypes, 8), kWarp) * kWarp;
  return int(std::min<int64_t>(threads, kMostRowThreads<T>));
}

// The workspace: potentials [A, K], then partial column sums
template <typename T>
T* exchange_of(const SinkhornCall& call) {
  return static_cast<T*>(call.workspace);
}
template <typename T>
T* partial_of(const SinkhornCall& call) {
  return exchange_of<T>(call) + call.num_problems * call.num_prototypes;
}

// First sweep if f is null, else a later one with the potentials f f_scale in base 2
template <typename T>
Error sweep(const SinkhornCall& call, const T* sample_weights, const T* f, T f_scale,
            const ColumnResult<T>& result) {
  const Slots slots(call.num_samples);
  const int64_t num_slots = call.num_problems * slots.count, k = call.num_prototypes;
  T* partial = partial_of<T>(call);
  const Error error = with_scores<T>(call.scores, [&](auto* scores) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(scores)>>;
    const Sweep<S> in{scores, sample_weights,           partial, call.num_samples,
                      k,      T(kLog2E / call.epsilon), slots};
    if (f == nullptr)
      return launch(column_stats_kernel<S>,
                    {num_slots * ceil_div<int64_t>(k, kColumnThreads), kColumnThreads}, call, in);
    return launch(column_sums_kernel<S>, {num_slots, row_threads<T>(k)}, call, in, f, f_scale);
  });
  if (error != nullptr) return error;
  return launch(f == nullptr ? combine_kernel<true, T> : combine_kernel<false, T>,
                {call.num_problems * ceil_div<int64_t>(k, kWarp), kColumnThreads}, call, partial,
                slots.count, k, result);
}

template <typename T>
Error write_codes(const SinkhornCall& call, const T* f, T* codes, CodeKind kind) {
  const int64_t num_rows = call.num_problems * call.num_samples, k = call.num_prototypes;
  return with_scores<T>(call.scores, [&](auto* scores) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(scores)>>;
    return launch(codes_kernel<S>, {std::min(num_rows, kMostBlocks), row_threads<T>(k)}, call,
                  scores, f, codes, num_rows, call.num_samples, k, T(kLog2E / call.epsilon), kind);
  });
}

// f [A, K], or the codes [A, N, K] that it stands for; the other one is null
template <typename T>
Error solve(const SinkhornCall& call, const T* sample_weights, const T* log_prototype_weights,
            int iterations, T* f, T* codes) {
  const OnChipPlan plan =
      plan_on_device(call.scores.dtype, call.num_samples, call.num_prototypes, call.device);
  if (plan.rows > 0)
    return sinkhorn_on_chip(call, plan, sample_weights, log_prototype_weights, iterations, f, codes,
                            exchange_of<T>(call), partial_of<T>(call));
  if (f == nullptr) f = exchange_of<T>(call);
  const T level = level_of(log_prototype_weights, call.num_samples, call.num_prototypes);
  const ColumnResult<T> result{nullptr, nullptr, log_prototype_weights, level, f};
  for (int iteration = 0; iteration < iterations; ++iteration) {
    const T* f_now = iteration == 0 ? nullptr : f;
    if (const Error error = sweep(call, sample_weights, f_now, T(1), result)) return error;
  }
  const Error error = launch(finish_kernel<T>, {call.num_problems, kMostRowThreads<T>}, call, f,
                             call.num_prototypes);
  if (error != nullptr || codes == nullptr) return error;
  return write_codes(call, f, codes, CodeKind::soft);
}

}  // namespace

int64_t sinkhorn_workspace(Dtype dtype, int64_t num_problems, int64_t num_samples,
                           int64_t num_prototypes, int device) {
  const int64_t partials = std::max(
      Slots(num_samples).count, plan_on_device(dtype, num_samples, num_prototypes, device).blocks);
  const int64_t size = dtype == Dtype::float64 ? sizeof(double) : sizeof(float);
  return num_problems * num_prototypes * (1 + 2 * partials) * size;
}

template <typename T>
Error Sinkhorn<T>::column_stats(const SinkhornCall& call, const T* sample_weights, T* column_max,
                                T* column_sums) {
  return on_device(call.device, [&] {
    return sweep<T>(call, sample_weights, nullptr, T(1),
                    {column_max, column_sums, nullptr, T(0), nullptr});
  });
}

template <typename T>
Error Sinkhorn<T>::column_sums(const SinkhornCall& call, const T* f, const T* sample_weights,
                               T* column_sums) {
  return on_device(call.device, [&] {
    return sweep<T>(call, sample_weights, f, T(kLog2E),
                    {nullptr, column_sums, nullptr, T(0), nullptr});
  });
}

template <typename T>
Error Sinkhorn<T>::potentials(const SinkhornCall& call, const T* sample_weights,
                              const T* log_prototype_weights, T* f, int iterations) {
  return on_device(call.device, [&] {
    return solve<T>(call, sample_weights, log_prototype_weights, iterations, f, nullptr);
  });
}

template <typename T>
Error Sinkhorn<T>::codes(const SinkhornCall& call, const T* f, T* codes, bool hard,
                         bool normalized) {
  const CodeKind soft = normalized ? CodeKind::soft : CodeKind::unnormalized;
  return on_device(call.device,
                   [&] { return write_codes(call, f, codes, hard ? CodeKind::hard : soft); });
}

template <typename T>
Error Sinkhorn<T>::potentials_and_codes(const SinkhornCall& call, T* codes, int iterations) {
  return on_device(call.device,
                   [&] { return solve<T>(call, nullptr, nullptr, iterations, nullptr, codes); });
}

template struct Sinkhorn<float>;
template struct Sinkhorn<double>;

}  // namespace swav::cuda
