// Launches on a device and a stream of the caller's; what goes wrong comes back as CUDA's message.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <limits>
#include <type_traits>

#include "../kernels.h"

namespace swav::cuda {

inline Error message(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// body() with this device as the current one
template <typename Body>
Error on_device(int device, const Body& body) {
  int before = 0;
  if (const Error error = message(cudaGetDevice(&before))) return error;
  if (before == device) return body();
  if (const Error error = message(cudaSetDevice(device))) return error;
  const Error failed = body();
  const Error restored = message(cudaSetDevice(before));
  return failed != nullptr ? failed : restored;
}

struct Grid {
  int64_t blocks;
  int threads;
  size_t shared_bytes;  // dynamic
  bool is_cooperative;  // all blocks at once, so that they can wait for each other
};

template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), const Grid& grid, const SinkhornCall& call,
             const Arguments&... arguments) {
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks > std::numeric_limits<int>::max()) return message(cudaErrorInvalidConfiguration);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(call.stream);
  config.attrs = &cooperative;
  config.numAttrs = grid.is_cooperative ? 1 : 0;
  return message(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// body(scores as a pointer to their own type), for scores that are summed in T
template <typename T, typename Body>
Error with_scores(Scores scores, const Body& body) {
  if constexpr (std::is_same_v<T, double>) {
    if (scores.dtype == Dtype::float64) return body(static_cast<const double*>(scores.data));
  } else {
    if (scores.dtype == Dtype::float16) return body(static_cast<const __half*>(scores.data));
    if (scores.dtype == Dtype::bfloat16)
      return body(static_cast<const __nv_bfloat16*>(scores.data));
    if (scores.dtype == Dtype::float32) return body(static_cast<const float*>(scores.data));
  }
  return "float64 scores and float64 sums go together only";
}

}  // namespace swav::cuda
