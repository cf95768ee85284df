// Where E = exp(s / epsilon) is kept from sweep to sweep, and how: get and put move kVectors
// vectors that lie side by side in a row.
#pragma once

#include "rows.h"

namespace swav::cpu::SWAV_ISA {
namespace {

// In the place of the codes
template <typename T>
struct InCodes {
  using Element = T;
  static constexpr int kVectors = 1;
  static int64_t stride(int64_t n) { return n; }
  template <typename Width>
  static void get(const T* p, Width width, Vec<T> (&v)[1]) {
    v[0] = swav::cpu::SWAV_ISA::get(p, width, T(0));
  }
  template <typename Width>
  static void put(T* p, const Vec<T> (&v)[1], Width width) {
    swav::cpu::SWAV_ISA::put(p, v[0], width);
  }
};

// In memory of its own, with rows of whole vectors
template <typename T>
struct InScratch {
  using Element = T;
  static constexpr int kVectors = 1;
  static int64_t stride(int64_t n) { return round_up(n, kLanes<T>); }
  template <typename Width>
  static void get(const T* p, Width, Vec<T> (&v)[1]) {
    v[0] = load(p);
  }
  template <typename Width>
  static void put(T* p, const Vec<T> (&v)[1], Width) {
    store(p, v[0]);
  }
};

// There as bfloat16, half the memory: one vector in the low halves of a vector of words, the next
// in the high halves, so that no number moves to another lane
struct InHalves {
  using Element = uint16_t;
  static constexpr int kVectors = 2;
  static int64_t stride(int64_t n) { return round_up(n, 2 * kLanes<float>); }
  template <typename Width>
  static void get(const uint16_t* p, Width, Vec<float> (&v)[2]) {
    const Words words = from_memory<Words>(p);
    v[0] = from_memory<Vec<float>>(&(const Words&)(words << 16));
    v[1] = from_memory<Vec<float>>(&(const Words&)(words & 0xffff0000u));
  }
  template <typename Width>
  static void put(uint16_t* p, const Vec<float> (&v)[2], Width) {
    // rounded; no carry reaches the sign, for E is finite
    const Words low = from_memory<Words>(&v[0]) + 0x8000u;
    const Words high = from_memory<Words>(&v[1]) + 0x8000u;
    const Words words = low >> 16 | (high & 0xffff0000u);
    std::memcpy(p, &words, sizeof words);
  }

 private:
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  template <typename V>
  static V from_memory(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
