// The cross-entropy of predictions from features and prototypes with codes that are formed beside
// them: what swav_loss and prototype_distillation_loss have in common. In cross_entropy.cpp.
#pragma once

#include "../kernels.h"

namespace swav::cpu::SWAV_ISA {

template <typename T>
struct CrossEntropyCall {
  const T* features;        // [V, B, D]
  const T* prototypes;      // [K, D]
  Teacher<T> teacher;       // null: codes are of the crops in settings.assign themselves
  const T* f;               // [A, K]
  const T* sample_weights;  // [B], or null
  T* d_features;            // null: not computed
  T* d_prototypes;
  CodeStatistics<T> statistics;
  int64_t num_samples, num_prototypes, dim;
  const LossSettings& settings;
  int threads;
};

// The mean over pairs of crops and samples
float cross_entropy(const CrossEntropyCall<float>& call);
// not of a set with bfloat16 products
double cross_entropy(const CrossEntropyCall<double>& call);

}  // namespace swav::cpu::SWAV_ISA
