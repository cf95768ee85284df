// Planted faults: kernels called with what makes them err. Only a build under sanitizers has them;
// tools/sanitize.py calls each by its name in a process of its own, which must end with the report
// named there.
#include <cstddef>
#include <vector>

#include "../../csrc/kernels.h"

using namespace swav;

#define PLANTED extern "C" __attribute__((visibility("default"))) void

namespace {

constexpr int64_t kSamples = 5, kPrototypes = 7;

std::vector<float> numbers(int64_t count) { return std::vector<float>(std::size_t(count), 0.5f); }

Scores of(const void* scores) { return {scores, Dtype::float32}; }

template <typename T>
void codes(Scores scores, T* codes) {
  const std::vector<T> f(kPrototypes);
  cpu::kernels<T>().sinkhorn_codes(scores, f.data(), codes, 1, kSamples, kPrototypes, 0.05, false,
                                   true, 1);
}

}  // namespace

// The codes have room for one number less than the kernel writes
PLANTED planted_write_past_the_end() {
  std::vector<float> out = numbers(kSamples * kPrototypes - 1);
  codes(of(numbers(kSamples * kPrototypes).data()), out.data());
}

// The scores are one number less than the kernel reads
PLANTED planted_read_past_the_end() {
  const std::vector<float> scores = numbers(kSamples * kPrototypes - 1);
  std::vector<float> out = numbers(kSamples * kPrototypes);
  codes(of(scores.data()), out.data());
}

// The scores are gone when the kernel reads them
PLANTED planted_use_after_free() {
  const float* gone = numbers(kSamples * kPrototypes).data();
  std::vector<float> out = numbers(kSamples * kPrototypes);
  codes(of(gone), out.data());
}

// The scores, which the kernel converts, lie two bytes off
PLANTED planted_misaligned_read() {
  const std::vector<float> scores = numbers(kSamples * kPrototypes + 1);
  std::vector<double> out(kSamples * kPrototypes);
  codes(of(reinterpret_cast<const char*>(scores.data()) + 2), out.data());
}

// The sizes overflow where the kernel multiplies them
PLANTED planted_overflow_of_sizes() {
  const std::vector<float> scores = numbers(kSamples * kPrototypes);
  float f;
  cpu::kernels<float>().sinkhorn_potentials(of(scores.data()), nullptr, nullptr, &f, 0,
                                            int64_t(1) << 62, 8, 0.05, 3, false, 1);
}
