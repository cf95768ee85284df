// The crops of a chunk of samples as vector lanes, beside the prototypes they are compared with.
#pragma once

#include "lanes.h"

namespace swav::cpu::SWAV_ISA {
namespace {

template <typename T, typename W>
class CropLanes {
 public:
  // features [num_crops, num_samples, dim]; null stands for no crops at all
  CropLanes(const T* features, const T* prototypes, int64_t num_crops, int64_t num_samples,
            int64_t num_prototypes, int64_t dim, int64_t chunk_samples, bool is_summed_across)
      : lanes(features == nullptr ? 0 : num_crops * chunk_samples),
        scores_size(round_up(num_prototypes, kTileSide) * lanes),
        prototypes(prototypes, lanes == 0 ? 0 : num_prototypes, dim, true, is_summed_across),
        features_(features),
        num_samples_(num_samples),
        dim_(dim),
        chunk_samples_(chunk_samples),
        packed_(packed_size<T, W>(lanes, dim) * sizeof(W)) {}

  const int64_t lanes, scores_size;  // scores are [K, lanes]
  const Operand<T, W> prototypes;

  // Take up samples begin, begin + 1, ...: lane v nb + j is crop v of sample begin + j
  void pack(int64_t begin, int64_t count) {
    begin_ = begin;
    count_ = count;
    for (int64_t lane = 0; lane < round_up(lanes, kPanel<T>); ++lane)
      pack_lane(sample(lane), lane, dim_, packed_.template as<W>());
  }

  // [dim], or null where there is none
  const T* sample(int64_t lane) const {
    const int64_t crop = lane / chunk_samples_, j = lane % chunk_samples_;
    if (lane >= lanes || j >= count_) return nullptr;
    return features_ + (crop * num_samples_ + begin_ + j) * dim_;
  }

  // Rows of the scores, into their place in scores [K, lanes]
  void compute(int64_t row, int64_t rows, T* scores) const {
    block_scores(prototypes.along(row), packed_.template as<W>(), rows, lanes, dim_,
                 scores + row * lanes);
  }

 private:
  const T* features_;
  const int64_t num_samples_, dim_, chunk_samples_;
  int64_t begin_ = 0, count_ = 0;
  Scratch packed_;
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
