// Every kernel's signature, once. Raw pointers and sizes: no torch, no Python.
//
// Letters: A problems (assign crops), N rows a problem, K prototypes, D the length of a feature,
// V crops, B samples. Matrices are contiguous, rows are samples: the paper's Q is the transpose.
// T is float or double, the type of all sums. f is a prototype potential: codes are
// softmax_k(s / epsilon + f). Potentials and maxima cross this border in natural logarithms.
#pragma once

#include <cstdint>

namespace swav {

enum class Dtype : int { float16, bfloat16, float32, float64 };

// A tensor of scores, in any floating type; it is converted to T on the way in.
struct Scores {
  const void* data;
  Dtype dtype;
};

namespace cpu {

// Sizes and settings of the loss kernels.
struct LossSettings {
  int64_t num_crops;      // V
  int64_t num_assign;     // A
  const int64_t* assign;  // [A], distinct crops; -1 is none: every crop predicts these codes
  double temperature;
  double epsilon;  // of the losses from features, as are those below
  bool hard;       // one-hot codes
};

// Whose codes the crops predict, if not their own
template <typename T>
struct Teacher {
  const T* features;    // [A, B, E]
  const T* prototypes;  // [K, E]
  int64_t dim;          // E
};

// Telemetry of the codes; all null when it is not wanted.
template <typename T>
struct CodeStatistics {
  int64_t* nearest;  // [A, B] argmax of the scores, lowest index on ties
  T* code_entropy;   // [A, B]
  T* max_code;       // [A, B]
  T* code_sums;      // [A, K]
};

// The kernels of one instruction set. `threads` changes the speed, never a bit of the result.
template <typename T>
struct Kernels {
  // scores [N, K] = features [N, D] prototypes [K, D]^T
  void (*prototype_scores)(const T* features, const T* prototypes, T* scores, int64_t num_samples,
                           int64_t num_prototypes, int64_t dim, int threads);
  // d_features [N, D] = d_scores [N, K] prototypes, d_prototypes [K, D] = d_scores^T features;
  // a null output is not computed, and its operand may be null
  void (*prototype_scores_gradients)(const T* d_scores, const T* features, const T* prototypes,
                                     T* d_features, T* d_prototypes, int64_t num_samples,
                                     int64_t num_prototypes, int64_t dim, int threads);

  // First sweep: t = s / epsilon + log w; column_max [A, K] = max_b t,
  // column_sums [A, K] = sum_b exp(t - column_max). sample_weights [A, N] may be null.
  void (*sinkhorn_column_stats)(Scores scores, const T* sample_weights, T* column_max,
                                T* column_sums, int64_t num_problems, int64_t num_samples,
                                int64_t num_prototypes, double epsilon, int threads);
  // Later sweeps: column_sums [A, K] = sum_b w_b softmax_k(s_b / epsilon + f)
  void (*sinkhorn_column_sums)(Scores scores, const T* f, const T* sample_weights, T* column_sums,
                               int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
                               double epsilon, int threads);
  // All sweeps: f [A, K]. log_prototype_weights [K] may be null.
  void (*sinkhorn_potentials)(Scores scores, const T* sample_weights,
                              const T* log_prototype_weights, T* f, int64_t num_problems,
                              int64_t num_samples, int64_t num_prototypes, double epsilon,
                              int iterations, bool bfloat16, int threads);
  // codes [A, N, K] = softmax_k(s / epsilon + f), one-hot if hard, exp(s / epsilon + f) if not
  // normalized; codes may be the scores themselves.
  void (*sinkhorn_codes)(Scores scores, const T* f, T* codes, int64_t num_problems,
                         int64_t num_samples, int64_t num_prototypes, double epsilon, bool hard,
                         bool normalized, int threads);

  // Potentials and codes in one, without weights and soft: codes [A, N, K]
  void (*sinkhorn)(Scores scores, T* codes, int64_t num_problems, int64_t num_samples,
                   int64_t num_prototypes, double epsilon, int iterations, int threads);

  // loss [] and, unless null, d_scores [V, B, K] of scores [V, B, K] and codes [A, B, K]
  void (*swapped_cross_entropy)(Scores scores, Scores codes, T* loss, T* d_scores,
                                int64_t num_samples, int64_t num_prototypes,
                                const LossSettings& settings, int threads);

  // The sweeps over scores = features [A, N, D] prototypes [K, D]^T, which are never stored whole
  void (*swav_column_stats)(const T* features, const T* prototypes, const T* sample_weights,
                            T* column_max, T* column_sums, int64_t num_problems,
                            int64_t num_samples, int64_t num_prototypes, int64_t dim,
                            double epsilon, int threads);
  void (*swav_column_sums)(const T* features, const T* prototypes, const T* f,
                           const T* sample_weights, T* column_sums, int64_t num_problems,
                           int64_t num_samples, int64_t num_prototypes, int64_t dim, double epsilon,
                           int threads);
  void (*swav_potentials)(const T* features, const T* prototypes, const T* sample_weights,
                          const T* log_prototype_weights, T* f, int64_t num_problems,
                          int64_t num_samples, int64_t num_prototypes, int64_t dim, double epsilon,
                          int iterations, int threads);
  // loss [] of features [V, B, D], prototypes [K, D] and potentials f [A, K], and the gradients
  // d_features [V, B, D] and d_prototypes [K, D] unless null
  void (*swav_loss)(const T* features, const T* prototypes, const T* f, T* loss, T* d_features,
                    T* d_prototypes, CodeStatistics<T> statistics, int64_t num_samples,
                    int64_t num_prototypes, int64_t dim, const LossSettings& settings, int threads);
  // The same with codes of a teacher, f [A, K] its potentials; sample_weights [B] may be null. A
  // crop predicts all codes but those of its number in settings.assign.
  void (*prototype_distillation_loss)(const T* features, const T* prototypes, Teacher<T> teacher,
                                      const T* f, const T* sample_weights, T* loss, T* d_features,
                                      T* d_prototypes, int64_t num_samples, int64_t num_prototypes,
                                      int64_t dim, const LossSettings& settings, int threads);
};

// Of the instruction set picked when the module is loaded: the best of this processor, or the one
// that SWAV_KERNELS_CPU names. bfloat16: features and prototypes are bfloat16 numbers, and their
// products may be of such numbers.
template <typename T>
const Kernels<T>& kernels(bool bfloat16 = false);
const char* instruction_set();

}  // namespace cpu

// The Sinkhorn on NVIDIA GPUs. Kernels are queued on the stream and nothing waits for them; what
// comes back is null, or what CUDA says went wrong.
namespace cuda {

using Error = const char*;

struct SinkhornCall {
  Scores scores;  // [A, N, K]; float64 if and only if T is double
  int64_t num_problems, num_samples, num_prototypes;
  double epsilon;
  void* workspace;  // of sinkhorn_workspace() bytes
  int device;
  void* stream;
};

// Arguments and results as in cpu::Kernels
template <typename T>
struct Sinkhorn {
  static Error column_stats(const SinkhornCall& call, const T* sample_weights, T* column_max,
                            T* column_sums);
  static Error column_sums(const SinkhornCall& call, const T* f, const T* sample_weights,
                           T* column_sums);
  static Error potentials(const SinkhornCall& call, const T* sample_weights,
                          const T* log_prototype_weights, T* f, int iterations);
  static Error codes(const SinkhornCall& call, const T* f, T* codes, bool hard, bool normalized);
  static Error potentials_and_codes(const SinkhornCall& call, T* codes, int iterations);
};

// How the form that keeps the scores on the chip lays a problem out: by its shape and the chip
// alone, so that a problem gets the same bits by itself and among others
struct OnChipPlan {
  int64_t rows;      // that a block keeps in shared memory; 0: the problem does not fit
  int64_t blocks;    // a problem
  int64_t problems;  // a launch
  int64_t shared_bytes;
};
OnChipPlan plan_on_chip(Dtype dtype, int64_t num_samples, int64_t num_prototypes, int processors,
                        int shared_bytes);

// Bytes that any of these calls may use
int64_t sinkhorn_workspace(Dtype dtype, int64_t num_problems, int64_t num_samples,
                           int64_t num_prototypes, int device);

}  // namespace cuda
}  // namespace swav
