// Sinkhorn over scores in memory: T + 1 sweeps, each of which reads the matrix once and fuses the
// row normalisation with the next column sums. In the linear domain where the scores' range allows
// it.
#include "linear_domain.h"
#include "log_domain.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

// Bytes of E that stay in a core's own cache. Beyond it, reading E costs more than computing it
// again from the scores, which have to be read as well; but bfloat16 is worth keeping.
constexpr int64_t kNear = int64_t(1) << 20;
constexpr int64_t kMostKept = int64_t(32) << 20;

// The largest logit's index, the lowest one on ties
template <typename T>
int64_t largest_logit(const T* row, const T* f, int64_t n, T scale) {
  Vec<T> best = splat(-kInf<T>);
  Ints<T> at{}, now = lane_numbers<T>();
  over_vectors<T>(n, [&](int64_t k, auto width) {
    const Vec<T> logit = get(row + k, width, -kInf<T>) * scale + load(f + k);
    const Ints<T> wins = logit > best;
    best = wins ? logit : best;
    at = wins ? now : at;
    now += kLanes<T>;
  });
  int winner = 0;
  for (int i = 1; i < kLanes<T>; ++i)
    if (best[i] > best[winner] || (best[i] == best[winner] && at[i] < at[winner])) winner = i;
  return at[winner];
}

template <typename T>
void codes(Scores scores, const T* f, T* codes, int64_t num_problems, int64_t num_samples,
           int64_t num_prototypes, double epsilon, bool hard, bool normalized, int threads) {
  const T scale = T(kLog2E / epsilon);
  const int64_t n = num_prototypes, stride = round_up(n, kLanes<T>);
  Scratch padded(num_problems * stride * sizeof(T));
  pad_rows(f, num_problems, n, T(kLog2E), padded.as<T>());
  const Pieces pieces(num_problems * num_samples, 64, 1);
  parallel_for(pieces.count, threads, [&](int64_t piece) {
    Scratch converted(stride * sizeof(T));
    for (int64_t b = pieces.begin(piece); b < pieces.end(piece); ++b) {
      const T* row = read(scores, b * n, n, converted.as<T>());
      const T* logits = padded.as<T>() + b / num_samples * stride;
      T* code = codes + b * n;
      if (hard) {
        const int64_t winner = largest_logit(row, logits, n, scale);
        const bool valid = exp_row(row, logits, n, scale, code) > T(0);  // false for NaN
        std::fill(code, code + n, valid ? T(0) : kNaN<T>);
        if (valid) code[winner] = T(1);
      } else if (normalized) {
        const T inverse = T(1) / exp_row(row, logits, n, scale, code);
        over_vectors<T>(n, [&](int64_t k, auto width) {
          put(code + k, get(code + k, width, T(0)) * inverse, width);
        });
      } else {
        over_vectors<T>(n, [&](int64_t k, auto width) {
          put(code + k, exp2<T>(get(row + k, width, -kInf<T>) * scale + load(logits + k)), width);
        });
      }
    }
  });
}

// One problem; f [K]
template <typename T>
void log_domain_potentials(Scores scores, const T* sample_weights, const T* log_prototype_weights,
                           T* f, int64_t num_samples, int64_t num_prototypes, T scale,
                           int iterations, int threads) {
  Scratch padded(round_up(num_prototypes, kLanes<T>) * sizeof(T));
  iterate<T>(
      [&](T* column_max, T* sums) {
        column_stats(scores, sample_weights, column_max, sums, 1, num_samples, num_prototypes,
                     scale, threads);
      },
      [&](const T* f_now, T* sums) {
        pad_rows(f_now, 1, num_prototypes, T(1), padded.as<T>());
        column_sums(scores, padded.as<T>(), sample_weights, sums, 1, num_samples, num_prototypes,
                    scale, threads);
      },
      log_prototype_weights, num_prototypes, iterations, f);
}

// f [A, K] by sweeps that keep E in `Store` of all rows, or of none
template <typename T, typename Store>
void potentials_by(bool keeps, Scores scores, const T* sample_weights,
                   const T* log_prototype_weights, T* f, int64_t num_problems, int64_t num_samples,
                   int64_t num_prototypes, double epsilon, int iterations, int threads) {
  using Element = typename Store::Element;
  const T scale = T(kLog2E / epsilon);
  const int64_t plane = num_samples * num_prototypes;
  const bool is_plain = sample_weights == nullptr && log_prototype_weights == nullptr && plane > 0;
  const int64_t kept_rows = is_plain && keeps && iterations > 1 ? num_samples : 0;
  Scratch kept(kept_rows * Store::stride(num_prototypes) * sizeof(Element));
  for (int64_t a = 0; a < num_problems; ++a) {
    if (is_plain) {
      Linear<T, Store> linear(scores, a * plane, kept.as<Element>(), kept_rows, num_samples,
                              num_prototypes, scale, threads);
      if (linear.first_sweep()) {
        for (int iteration = 1; iteration < iterations; ++iteration) linear.later_sweep();
        linear.potentials(f + a * num_prototypes);
        continue;
      }
    }
    log_domain_potentials(problem(scores, a * plane),
                          sample_weights == nullptr ? nullptr : sample_weights + a * num_samples,
                          log_prototype_weights, f + a * num_prototypes, num_samples,
                          num_prototypes, scale, iterations, threads);
  }
}

template <typename T>
void potentials(Scores scores, const T* sample_weights, const T* log_prototype_weights, T* f,
                int64_t num_problems, int64_t num_samples, int64_t num_prototypes, double epsilon,
                int iterations, bool bfloat16, int threads) {
  const auto run = [&](auto store, bool keeps) {
    potentials_by<T, decltype(store)>(keeps, scores, sample_weights, log_prototype_weights, f,
                                      num_problems, num_samples, num_prototypes, epsilon,
                                      iterations, threads);
  };
  const int64_t numbers = num_samples * num_prototypes;
  const bool is_near = numbers * int64_t(sizeof(T)) <= kNear;
  if constexpr (std::is_same_v<T, float>)
    if (bfloat16 && !is_near && 2 * numbers <= kMostKept) return run(InHalves{}, true);
  run(InScratch<T>{}, is_near);
}

// Potentials and codes at once, without weights: E grows in the place of the codes
template <typename T>
void sinkhorn(Scores scores, T* out, int64_t num_problems, int64_t num_samples,
              int64_t num_prototypes, double epsilon, int iterations, int threads) {
  const T scale = T(kLog2E / epsilon);
  const int64_t plane = num_samples * num_prototypes;
  Scratch potentials_buffer(num_prototypes * sizeof(T));
  T* f = potentials_buffer.as<T>();
  for (int64_t a = 0; a < num_problems && plane > 0; ++a) {
    T* codes_out = out + a * plane;
    Linear<T, InCodes<T>> linear(scores, a * plane, codes_out, num_samples, num_samples,
                                 num_prototypes, scale, threads);
    // E in the place of the scores would leave nothing to fall back on
    const bool in_place = scores.data == out;
    if ((!in_place || linear.in_range()) && linear.first_sweep()) {
      for (int iteration = 1; iteration < iterations; ++iteration) linear.later_sweep();
      linear.codes();
      continue;
    }
    log_domain_potentials<T>(problem(scores, a * plane), nullptr, nullptr, f, num_samples,
                             num_prototypes, scale, iterations, threads);
    codes(problem(scores, a * plane), f, codes_out, 1, num_samples, num_prototypes, epsilon, false,
          true, threads);
  }
}

template <typename T>
void add(Kernels<T>& table) {
  table.sinkhorn_column_stats = [](Scores scores, const T* sample_weights, T* column_max, T* sums,
                                   int64_t num_problems, int64_t num_samples,
                                   int64_t num_prototypes, double epsilon, int threads) {
    column_stats(scores, sample_weights, column_max, sums, num_problems, num_samples,
                 num_prototypes, T(kLog2E / epsilon), threads);
    const int64_t size = num_problems * num_prototypes;
    scale_all(column_max, T(kLn2), size, column_max);
  };
  table.sinkhorn_column_sums = [](Scores scores, const T* f, const T* sample_weights, T* sums,
                                  int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
                                  double epsilon, int threads) {
    Scratch padded(num_problems * round_up(num_prototypes, kLanes<T>) * sizeof(T));
    pad_rows(f, num_problems, num_prototypes, T(kLog2E), padded.as<T>());
    column_sums(scores, padded.as<T>(), sample_weights, sums, num_problems, num_samples,
                num_prototypes, T(kLog2E / epsilon), threads);
  };
  table.sinkhorn_potentials = potentials<T>;
  table.sinkhorn = sinkhorn<T>;
  table.sinkhorn_codes = codes<T>;
}

}  // namespace

void add_sinkhorn(Kernels<float>& single, [[maybe_unused]] Kernels<double>& twice) {
  add(single);
#ifdef SWAV_HAS_FLOAT64
  add(twice);
#endif
}

}  // namespace swav::cpu::SWAV_ISA
