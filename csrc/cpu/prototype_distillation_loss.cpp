// A student predicts a teacher's codes, both from features and prototypes of their own.
#include "cross_entropy.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

template <typename T>
void prototype_distillation_loss(const T* features, const T* prototypes, Teacher<T> teacher,
                                 const T* f, const T* sample_weights, T* loss, T* d_features,
                                 T* d_prototypes, int64_t num_samples, int64_t num_prototypes,
                                 int64_t dim, const LossSettings& settings, int threads) {
  const CrossEntropyCall<T> call{features,   prototypes,   teacher, f,           sample_weights,
                                 d_features, d_prototypes, {},      num_samples, num_prototypes,
                                 dim,        settings,     threads};
  *loss = cross_entropy(call);
}

}  // namespace

void add_prototype_distillation_loss(Kernels<float>& single,
                                     [[maybe_unused]] Kernels<double>& twice) {
  single.prototype_distillation_loss = prototype_distillation_loss<float>;
#ifdef SWAV_HAS_FLOAT64
  twice.prototype_distillation_loss = prototype_distillation_loss<double>;
#endif
}

}  // namespace swav::cpu::SWAV_ISA
