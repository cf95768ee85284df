// Planted faults of a GPU, one for each tool of compute-sanitizer: tools/sanitize_gpu.py runs this
// program with the tool's name, and the tool must report it.
#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

// memcheck: the last thread writes past the end of [kThreads - 1]
__global__ void write_past_the_end_kernel(float* out) { out[threadIdx.x] = 1; }

// racecheck: a thread reads what another warp has written, with no barrier between
__global__ void missing_barrier_kernel(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = float(threadIdx.x);
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// initcheck: reads what nothing has written
__global__ void read_uninitialised_kernel(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x] + 1;
}

// synccheck: half of a warp never comes to the barrier
__global__ void divergent_barrier_kernel(float* out) {
  if (threadIdx.x % 32 < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

}  // namespace

int main(int count, char** arguments) {
  const char* tool = count > 1 ? arguments[1] : "";
  float *in = nullptr, *out = nullptr;
  const size_t bytes = kThreads * sizeof(float);
  cudaMalloc(&in, bytes);
  cudaMalloc(&out, std::strcmp(tool, "memcheck") == 0 ? bytes - sizeof(float) : bytes);
  if (std::strcmp(tool, "memcheck") == 0)
    write_past_the_end_kernel<<<1, kThreads>>>(out);
  else if (std::strcmp(tool, "racecheck") == 0)
    missing_barrier_kernel<<<1, kThreads>>>(out);
  else if (std::strcmp(tool, "initcheck") == 0)
    read_uninitialised_kernel<<<1, kThreads>>>(in, out);
  else if (std::strcmp(tool, "synccheck") == 0)
    divergent_barrier_kernel<<<1, kThreads>>>(out);
  else
    return std::fprintf(stderr, "planted: no fault for '%s'\n", tool), 2;
  const cudaError_t error = cudaDeviceSynchronize();
  std::printf("%s: %s\n", tool, cudaGetErrorString(error));
  cudaFree(in), cudaFree(out);
  return 0;  // what the sanitizer says is its own exit status
}
