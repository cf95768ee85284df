// What a slot of prototypes knows of the lanes of a chunk.
#pragma once

#include "lanes.h"

namespace swav::cpu::SWAV_ISA {
namespace {

// The largest value of each lane so far and the first prototype that has it
template <typename T>
struct Argmax {
  T* best;  // [lanes]
  T* at;    // exact as T up to 2^24 prototypes in float

  void clear(int64_t lanes) const {
    std::fill(best, best + lanes, -kInf<T>);
    std::fill(at, at + lanes, T(0));
  }
  void add(Vec<T> value, int64_t prototype, int64_t lane) const {
    const Vec<T> old = load(best + lane);
    const Ints<T> wins = value > old;
    store<T>(best + lane, wins ? value : old);
    store<T>(at + lane, wins ? splat(T(prototype)) : load(at + lane));
  }
  // Join with that of later prototypes, which win only if larger
  void merge(const Argmax& later, int64_t lanes) const {
    for (int64_t lane = 0; lane < lanes; ++lane)
      if (later.best[lane] > best[lane]) {
        best[lane] = later.best[lane];
        at[lane] = later.at[lane];
      }
  }
};

// [V nb] lanes of predictions, [A nb] of codes
template <typename T>
struct LaneState {
  LaneSums<T> prediction;  // [V nb]
  LaneSums<T> code;        // [A nb], as all below
  Argmax<T> nearest;       // of the scores
  Argmax<T> hardest;       // of the code's logits
  T* entropy;
  double* loss;  // [nb], in base 2

  static size_t bytes(int64_t lanes, int64_t coded) {
    return size_t(2 * lanes + 7 * coded) * sizeof(T) + size_t(lanes) * sizeof(double);
  }
  LaneState(void* memory, int64_t lanes, int64_t coded) {
    loss = static_cast<double*>(memory);
    T* p = reinterpret_cast<T*>(loss + lanes);
    const auto take = [&p](int64_t n) { return (p += n) - n; };
    prediction = {take(lanes), take(lanes)};
    code = {take(coded), take(coded)};
    nearest = {take(coded), take(coded)};
    hardest = {take(coded), take(coded)};
    entropy = take(coded);
  }
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
