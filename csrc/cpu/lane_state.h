// What a slot of prototypes knows of the lanes of a chunk.
#pragma once

#include "../kernels.h"
#include "lanes.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kChunkLanes = 128;                // about: a multiple of crops and vector lanes
constexpr int64_t kMostScores = int64_t(32) << 20;  // bytes, unless one vector of samples has more

// As many samples as make about kChunkLanes lanes with all their crops, of which kMostScores holds
// the scores, a teacher's too; pairs in the lanes of an odd number of crops must fill tiles
template <typename T, typename W>
int64_t chunk_samples(int64_t num_samples, int64_t num_crops, int64_t scored_crops,
                      int64_t num_prototypes) {
  const int64_t unit = kUsesTiles<W> && num_crops % 2 != 0 ? 2 * kLanes<T> : kLanes<T>;
  const int64_t units =
      std::min(kChunkLanes / (num_crops * unit),
               kMostScores / (scored_crops * unit * int64_t(sizeof(T)) * num_prototypes));
  const int64_t most = std::max<int64_t>(1, units) * unit;
  return std::min(round_up(std::max<int64_t>(1, num_samples), unit), most);
}

// Crops that predict codes, each counted once for each code: none predicts its own
inline double num_pairs(const LossSettings& settings) {
  int64_t pairs = settings.num_assign * settings.num_crops;
  for (int64_t a = 0; a < settings.num_assign; ++a) pairs -= settings.assign[a] >= 0;
  return double(pairs);
}

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

  int64_t lanes, coded;

  static size_t bytes(int64_t lanes, int64_t coded) {
    return size_t(2 * lanes + 7 * coded) * sizeof(T) + size_t(lanes) * sizeof(double);
  }
  LaneState(void* memory, int64_t lanes, int64_t coded) : lanes(lanes), coded(coded) {
    loss = static_cast<double*>(memory);
    T* p = reinterpret_cast<T*>(loss + lanes);
    const auto take = [&p](int64_t n) { return (p += n) - n; };
    prediction = {take(lanes), take(lanes)};
    code = {take(coded), take(coded)};
    nearest = {take(coded), take(coded)};
    hardest = {take(coded), take(coded)};
    entropy = take(coded);
  }

  void clear() const {
    prediction.clear(lanes);
    code.clear(coded);
    nearest.clear(coded);
    hardest.clear(coded);
    std::fill(entropy, entropy + coded, T(0));
    std::fill(loss, loss + lanes, 0.);
  }

  // Join with what a slot of later prototypes found in the first visit
  void merge(const LaneState& later) const {
    prediction.merge(later.prediction, lanes);
    code.merge(later.code, coded);
    nearest.merge(later.nearest, coded);
    hardest.merge(later.hardest, coded);
  }
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
