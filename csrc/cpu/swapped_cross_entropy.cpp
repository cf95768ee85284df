// The swapped cross-entropy of scores and codes in memory: value and gradient in one visit of each
// sample, with one log-sum-exp a crop and none a pair.
//
// Row sums Q of the codes are the actual ones: loss = w sum_v sum_b (Q lse_v - sum_k q_k s_vk / t),
// where q is the sum of the codes of the other assign crops.
#include "exp.h"
#include "parallel.h"
#include "rows.h"
#include "scratch.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kPieceSamples = 4;

// One crop of one sample: returns its loss in base 2; d (null or [K]) gets its gradient
template <typename T>
double crop_loss(const T* row, const T* target, int64_t n, T scale, double weight, T* d) {
  Vec<T> top = splat(-kInf<T>);
  over_vectors<T>(
      n, [&](int64_t k, auto width) { top = larger<T>(get(row + k, width, -kInf<T>), top); });
  const T largest = largest_lane<T>(top);
  double sum = 0, mass = 0, cross = 0;  // of exp, of the codes, of code times logit
  Vec<T> sums{}, masses{}, crosses{};
  over_blocks<T>(
      n,
      [&](int64_t k, auto width) {
        // relative to the largest score, so that the loss is no difference of large numbers
        const Vec<T> logit = (get(row + k, width, -kInf<T>) - largest) * scale;
        const Vec<T> q = load(target + k);
        const Vec<T> e = exp2<T>(logit);
        sums += e;
        masses += q;
        crosses += q == T(0) ? Vec<T>{} : q * logit;  // no code on a masked score: 0, not 0 * inf
        if (d != nullptr) put(d + k, e, width);
      },
      [&] {
        sum += sum_lanes<T>(sums);
        mass += sum_lanes<T>(masses);
        cross += sum_lanes<T>(crosses);
        sums = masses = crosses = Vec<T>{};
      });
  if (d != nullptr) {
    const T of_p = T(weight * mass / sum), of_q = T(weight);
    over_vectors<T>(n, [&](int64_t k, auto width) {
      put(d + k, get(d + k, width, T(0)) * of_p - load(target + k) * of_q, width);
    });
  }
  return mass * std::log2(sum) - cross;
}

template <typename T>
void loss_and_gradient(Scores scores, Scores codes, T* loss, T* d_scores, int64_t num_samples,
                       int64_t num_prototypes, const LossSettings& settings, int threads) {
  const int64_t n = num_prototypes, plane = num_samples * n, stride = round_up(n, kLanes<T>);
  const double pairs = double(settings.num_assign) * double(settings.num_crops - 1);
  const double weight = 1 / (pairs * double(std::max<int64_t>(1, num_samples)));
  const T scale = T(kLog2E / settings.temperature);
  const Pieces pieces(num_samples, num_samples, kPieceSamples);
  Scratch partial(std::max<int64_t>(1, pieces.count) * sizeof(double));
  double* piece_loss = partial.as<double>();
  parallel_for(pieces.count, threads, [&](int64_t piece) {
    Scratch row_buffer(stride * sizeof(T)), code_buffer(stride * sizeof(T));
    Scratch target_buffer(stride * sizeof(T));
    T* target = target_buffer.as<T>();
    piece_loss[piece] = 0;
    for (int64_t b = pieces.begin(piece); b < pieces.end(piece); ++b)
      for (int64_t v = 0; v < settings.num_crops; ++v) {
        std::fill(target, target + stride, T(0));
        for (int64_t a = 0; a < settings.num_assign; ++a) {
          if (settings.assign[a] == v) continue;
          const T* q = read(codes, a * plane + b * n, n, code_buffer.as<T>());
          for (int64_t k = 0; k < n; ++k) target[k] += q[k];
        }
        const int64_t first = v * plane + b * n;
        piece_loss[piece] += crop_loss(read(scores, first, n, row_buffer.as<T>()), target, n, scale,
                                       weight / settings.temperature,
                                       d_scores == nullptr ? nullptr : d_scores + first);
      }
  });
  double total = 0;
  for (int64_t piece = 0; piece < pieces.count; ++piece) total += piece_loss[piece];
  *loss = T(total * kLn2 * weight);
}

}  // namespace

void add_swapped_cross_entropy(Kernels<float>& single, [[maybe_unused]] Kernels<double>& twice) {
  single.swapped_cross_entropy = loss_and_gradient<float>;
#ifdef SWAV_HAS_FLOAT64
  twice.swapped_cross_entropy = loss_and_gradient<double>;
#endif
}

}  // namespace swav::cpu::SWAV_ISA
