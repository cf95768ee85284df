// Which problems fit on the chip, how they are laid out over it, and the launch.
#include <algorithm>
#include <map>
#include <mutex>

#include "on_chip.cuh"
#include "on_chip.h"

namespace swav::cuda {
namespace {

constexpr int64_t kMostRows = 128;           // of a block, and of a running sum
constexpr int64_t kEnoughScores = 4096;      // of a block: with fewer it waits more than it works
constexpr int64_t kLittleShared = 96 << 10;  // of a block on half the chip
constexpr int kSystemShared = 1 << 10;       // of a block, which a kernel may be charged for

struct Limits {
  int processors = 0, shared_bytes = 0, cooperates = 0;
};

// Of a device, asked once; all 0 for one that does not answer
Limits limits_of(int device) {
  static std::mutex mutex;
  static std::map<int, Limits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace(device);
  if (is_new) {
    Limits& limits = entry->second;
    cudaDeviceGetAttribute(&limits.processors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&limits.cooperates, cudaDevAttrCooperativeLaunch, device);
    limits.shared_bytes -= kSystemShared;
  }
  return entry->second;
}

int64_t bytes_of_block(Dtype dtype, int64_t rows, int64_t num_prototypes) {
  if (dtype == Dtype::float64) return Layout<double>(rows, num_prototypes).bytes;
  if (dtype == Dtype::float32) return Layout<float>(rows, num_prototypes).bytes;
  return Layout<__half>(rows, num_prototypes).bytes;
}

}  // namespace

OnChipPlan plan_on_chip(Dtype dtype, int64_t num_samples, int64_t num_prototypes, int processors,
                        int shared_bytes) {
  if (num_samples == 0 || processors == 0) return {};
  // half the chip, so that two problems run side by side, and fewer blocks for fewer scores
  const int64_t half = std::max(processors / 2, 1);
  int64_t rows = std::min(ceil_div(kEnoughScores, num_prototypes), kMostRows);
  rows = std::min(std::max(rows, ceil_div(num_samples, half)), num_samples);
  if (bytes_of_block(dtype, rows, num_prototypes) > kLittleShared)
    rows = ceil_div<int64_t>(num_samples, processors);
  const int64_t bytes = bytes_of_block(dtype, rows, num_prototypes);
  if (rows > kMostRows || bytes > shared_bytes) return {};
  const int64_t blocks = ceil_div(num_samples, rows);
  return {rows, blocks, processors / blocks, bytes};
}

OnChipPlan plan_on_device(Dtype dtype, int64_t num_samples, int64_t num_prototypes, int device) {
  const Limits limits = limits_of(device);
  if (!limits.cooperates) return {};
  return plan_on_chip(dtype, num_samples, num_prototypes, limits.processors, limits.shared_bytes);
}

template <typename T>
Error sinkhorn_on_chip(const SinkhornCall& call, const OnChipPlan& plan, const T* sample_weights,
                       const T* log_prototype_weights, int iterations, T* f, T* codes, T* exchange,
                       T* partial) {
  return with_scores<T>(call.scores, [&](auto* scores) -> Error {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(scores)>>;
    const auto kernel = on_chip_kernel<S>;
    // the most there is, whatever the shape: another thread may be launching it too
    const cudaError_t refused = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits_of(call.device).shared_bytes);
    if (refused != cudaSuccess) return message(refused);
    const int64_t n = call.num_samples, k = call.num_prototypes;
    for (int64_t first = 0; first < call.num_problems; first += plan.problems) {
      const int64_t problems = std::min(plan.problems, call.num_problems - first);
      const Arguments<S> in{scores + first * n * k,
                            sample_weights == nullptr ? nullptr : sample_weights + first * n,
                            log_prototype_weights,
                            f == nullptr ? nullptr : f + first * k,
                            codes == nullptr ? nullptr : codes + first * n * k,
                            exchange,
                            partial,
                            n,
                            int(k),
                            int(plan.rows),
                            int(plan.blocks),
                            iterations,
                            T(kLog2E / call.epsilon),
                            level_of(log_prototype_weights, n, k)};
      const Error error = launch(
          kernel, {problems * plan.blocks, kThreads<T>, size_t(plan.shared_bytes), true}, call, in);
      if (error != nullptr) return error;
    }
    return nullptr;
  });
}

template Error sinkhorn_on_chip(const SinkhornCall&, const OnChipPlan&, const float*, const float*,
                                int, float*, float*, float*, float*);
template Error sinkhorn_on_chip(const SinkhornCall&, const OnChipPlan&, const double*,
                                const double*, int, double*, double*, double*, double*);

}  // namespace swav::cuda
