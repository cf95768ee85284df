// The SwAV loss from features, prototypes and potentials: crops predict each other's codes.
#include "cross_entropy.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

template <typename T>
void swav_loss(const T* features, const T* prototypes, const T* f, T* loss, T* d_features,
               T* d_prototypes, CodeStatistics<T> statistics, int64_t num_samples,
               int64_t num_prototypes, int64_t dim, const LossSettings& settings, int threads) {
  const CrossEntropyCall<T> call{features,   prototypes,   {},         f,           nullptr,
                                 d_features, d_prototypes, statistics, num_samples, num_prototypes,
                                 dim,        settings,     threads};
  *loss = cross_entropy(call);
}

}  // namespace

void add_swav_loss(Kernels<float>& single, [[maybe_unused]] Kernels<double>& twice) {
  single.swav_loss = swav_loss<float>;
#ifdef SWAV_HAS_FLOAT64
  twice.swav_loss = swav_loss<double>;
#endif
}

}  // namespace swav::cpu::SWAV_ISA
