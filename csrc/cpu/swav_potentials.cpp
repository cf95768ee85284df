// Sinkhorn over features and prototypes: the sweeps of sinkhorn.cpp, with scores computed by the
// chunk. Chunks are kept from the first sweep on as far as a bounded memory goes; the others are
// computed again in each sweep, so [N, K] is never held.
#include "lanes.h"
#include "potentials.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kChunkLanes = 64;
constexpr int64_t kMostKept = int64_t(32) << 20;  // bytes of scores
// Where |s| / epsilon * log2(e) is at most this, E = 2^t is kept in the place of the scores and a
// sweep needs no exponential: E, u = 1 / sum_b a E and a = 1 / sum_k u E lie within 2^(2 * 50) N
constexpr double kLargestExponent = 50;

// All chunks, or as many as kMostKept holds beside the one that the others share
inline int64_t kept_chunks(int64_t chunks, int64_t bytes) {
  if (chunks * bytes <= kMostKept) return chunks;
  return std::max<int64_t>(0, kMostKept / bytes - 1);
}

// One problem
template <typename T, typename W>
class Sweeps {
 public:
  // samples [N, D], sample_weights [N] or null; `keep`: there will be more than one sweep; `norm`:
  // a bound of the prototypes' norms, or infinity if sums may have any weights
  Sweeps(const T* samples, const Operand<T, W>& prototypes, const T* sample_weights,
         int64_t num_samples, int64_t num_prototypes, int64_t dim, double epsilon, int threads,
         bool keep, T norm)
      : samples_(samples),
        prototypes_(prototypes),
        sample_weights_(sample_weights),
        num_samples_(num_samples),
        num_prototypes_(num_prototypes),
        dim_(dim),
        scale_(T(kLog2E / epsilon)),
        threads_(threads),
        lanes_(std::min(kChunkLanes, round_up(num_samples, kLanes<T>))),
        chunks_(num_samples == 0 ? 0 : (num_samples + lanes_ - 1) / lanes_),
        chunk_size_(round_up(num_prototypes, kTileSide) * lanes_),
        kept_(keep ? kept_chunks(chunks_, chunk_size_ * int64_t(sizeof(T))) : 0),
        is_linear_(kept_ > 0 && kept_ == chunks_ && norm < kInf<T> &&
                   double(largest_norm(samples, num_samples, dim) * norm * scale_) <=
                       kLargestExponent),
        slots_(num_prototypes, kMostSlots, kBlockRows<W>),
        scores_(std::min(kept_ + 1, chunks_) * chunk_size_ * sizeof(T)),
        packed_(packed_size<T, W>(lanes_, dim) * sizeof(W)),
        totals_(num_prototypes * sizeof(double)),
        u_(is_linear_ ? num_prototypes * sizeof(T) : 0),
        lane_values_((2 * slots_.count + 2) * kChunkLanes * sizeof(T)) {}

  // Maxima and sums [K] of 2^t, in base 2
  void first(T* column_max, T* column_sums) {
    double* totals = totals_.as<double>();
    std::fill(column_max, column_max + num_prototypes_, is_linear_ ? T(0) : -kInf<T>);
    std::fill(totals, totals + num_prototypes_, 0.);
    T* bias = lane_values_.as<T>();  // log w; -inf in lanes without a sample
    over_chunks([&](int64_t chunk, int64_t begin, int64_t count) {
      for (int64_t lane = 0; lane < lanes_; ++lane)
        bias[lane] = lane >= count ? -kInf<T> : std::log2(weight(begin + lane));
      pack(begin, count);
      T* scores = chunk_scores(chunk);
      over_blocks([&](int64_t, int64_t row, int64_t rows) {
        compute(scores, row, rows);
        for (int64_t k = row; k < row + rows; ++k) {
          if (is_linear_)
            totals[k] += exponentials(scores + k * lanes_, bias);
          else
            add_column(scores + k * lanes_, bias, column_max[k], totals[k]);
        }
      });
    });
    for (int64_t k = 0; k < num_prototypes_; ++k) column_sums[k] = T(totals[k]);
  }

  // Sums [K] of w softmax_k; f is in base 2. After first() if scores are kept.
  void later(const T* f, T* column_sums) {
    if (is_linear_) return later_linear(f, column_sums);
    double* totals = totals_.as<double>();
    std::fill(totals, totals + num_prototypes_, 0.);
    T *log_sum = lane_values_.as<T>(), *weights = log_sum + kChunkLanes;
    over_chunks([&](int64_t chunk, int64_t begin, int64_t count) {
      T* scores = chunk_scores(chunk);
      const bool is_kept = chunk < kept_;
      if (!is_kept) pack(begin, count);
      for (int64_t slot = 0; slot < slots_.count; ++slot) slot_sums(slot).clear(lanes_);
      over_blocks([&](int64_t slot, int64_t row, int64_t rows) {
        if (!is_kept) compute(scores, row, rows);
        for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
          slot_sums(slot).add(scores + row * lanes_ + lane, rows, lanes_, scale_, f + row, lane);
      });
      for (int64_t slot = 1; slot < slots_.count; ++slot)
        slot_sums(0).merge(slot_sums(slot), lanes_);
      for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
        // a row without prototypes adds nothing: its terms are 2^-inf
        const Vec<T> sum = slot_sums(0).log_sum(lane);
        store<T>(log_sum + lane, sum == -kInf<T> ? Vec<T>{} : sum);
      }
      for (int64_t lane = 0; lane < lanes_; ++lane)
        weights[lane] = lane < count ? weight(begin + lane) : T(0);
      over_blocks([&](int64_t, int64_t row, int64_t rows) {
        for (int64_t k = row; k < row + rows; ++k) {
          Vec<T> sum{};
          for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
            sum += load(weights + lane) *
                   exp2<T>(load(scores + k * lanes_ + lane) * scale_ + f[k] - load(log_sum + lane));
          totals[k] += sum_lanes<T>(sum);
        }
      });
    });
    for (int64_t k = 0; k < num_prototypes_; ++k) column_sums[k] = T(totals[k]);
  }

 private:
  // The same from E
  void later_linear(const T* f, T* column_sums) {
    double* totals = totals_.as<double>();
    std::fill(totals, totals + num_prototypes_, 0.);
    T *u = u_.as<T>(), *a = lane_values_.as<T>();
    over_vectors<T>(num_prototypes_, [&](int64_t k, auto width) {
      put(u + k, exp2<T>(get(f + k, width, -kInf<T>)), width);
    });
    over_chunks([&](int64_t chunk, int64_t, int64_t count) {
      const T* e = chunk_scores(chunk);
      for (int64_t slot = 0; slot < slots_.count; ++slot) slot_sums(slot).clear(lanes_);
      over_blocks([&](int64_t slot, int64_t row, int64_t rows) {
        T* sums = slot_sums(slot).sum;
        for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
          Vec<T> sum{};
          for (int64_t k = row; k < row + rows; ++k) sum += load(e + k * lanes_ + lane) * u[k];
          store<T>(sums + lane, load(sums + lane) + sum);
        }
      });
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        T sum = 0;
        for (int64_t slot = 0; slot < slots_.count; ++slot) sum += slot_sums(slot).sum[lane];
        a[lane] = lane < count ? T(1) / sum : T(0);
      }
      over_blocks([&](int64_t, int64_t row, int64_t rows) {
        for (int64_t k = row; k < row + rows; ++k) {
          Vec<T> sum{};
          for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
            sum += load(a + lane) * load(e + k * lanes_ + lane);
          totals[k] += double(u[k] * sum_lanes<T>(sum));
        }
      });
    });
    for (int64_t k = 0; k < num_prototypes_; ++k) column_sums[k] = T(totals[k]);
  }

  // body(chunk, first sample, samples)
  template <typename Body>
  void over_chunks(const Body& body) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
      body(chunk, chunk * lanes_, std::min(lanes_, num_samples_ - chunk * lanes_));
  }

  // body(slot, first prototype, prototypes) for each block, slots in parallel
  template <typename Body>
  void over_blocks(const Body& body) {
    parallel_for(slots_.count, threads_, [&](int64_t slot) {
      const TileScope scope;
      for (int64_t row = slots_.begin(slot); row < slots_.end(slot); row += kBlockRows<W>)
        body(slot, row, std::min(kBlockRows<W>, slots_.end(slot) - row));
    });
  }

  T weight(int64_t sample) const {
    return sample_weights_ == nullptr ? T(1) : sample_weights_[sample];
  }

  void pack(int64_t begin, int64_t count) {
    const T* first = samples_ + begin * dim_;
    for (int64_t lane = 0; lane < round_up(lanes_, kPanel<T>); ++lane)
      pack_lane(lane < count ? first + lane * dim_ : nullptr, lane, dim_, packed_.as<W>());
  }

  T* chunk_scores(int64_t chunk) { return scores_.as<T>() + std::min(chunk, kept_) * chunk_size_; }

  void compute(T* scores, int64_t row, int64_t rows) {
    block_scores(prototypes_.along(row), packed_.as<W>(), rows, lanes_, dim_,
                 scores + row * lanes_);
  }

  LaneSums<T> slot_sums(int64_t slot) {
    T* first = lane_values_.as<T>() + (2 + 2 * slot) * kChunkLanes;
    return {first, first + kChunkLanes};
  }

  // One prototype's scores of a chunk become E, 0 in lanes without a sample; their sum
  double exponentials(T* scores, const T* bias) const {
    Vec<T> sum{};
    for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
      Vec<T> x = exp2_product(load(scores + lane), scale_);
      x = load(bias + lane) == -kInf<T> ? Vec<T>{} : x;
      store<T>(scores + lane, x);
      sum += x;
    }
    return double(sum_lanes<T>(sum));
  }

  // One prototype's scores of a chunk join its running maximum and sum
  void add_column(const T* scores, const T* bias, T& column_max, double& total) const {
    Vec<T> top = splat(column_max), sum{};
    for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
      top = larger<T>(load(scores + lane) * scale_ + load(bias + lane), top);
    const T largest = largest_lane<T>(top), shift = largest == -kInf<T> ? T(0) : largest;
    for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
      sum += exp2<T>(load(scores + lane) * scale_ + load(bias + lane) - shift);
    if (largest > column_max) total *= std::exp2(double(column_max) - double(shift));
    total += sum_lanes<T>(sum);
    column_max = largest;
  }

  const T* samples_;
  const Operand<T, W>& prototypes_;
  const T* sample_weights_;
  const int64_t num_samples_, num_prototypes_, dim_;
  const T scale_;
  const int threads_;
  const int64_t lanes_, chunks_, chunk_size_, kept_;
  const bool is_linear_;
  const Pieces slots_;
  Scratch scores_, packed_, totals_, u_, lane_values_;
};

// run(a, sweeps of problem a), one problem after the other so that one's scores are held at a time,
// with this set's kind of products
template <typename T, typename Run>
void with_sweeps(const T* features, const T* prototypes, const T* sample_weights,
                 int64_t num_problems, int64_t num_samples, int64_t num_prototypes, int64_t dim,
                 double epsilon, int threads, bool keep, bool has_weights, const Run& run) {
  const T norm = keep && !has_weights ? largest_norm(prototypes, num_prototypes, dim) : kInf<T>;
  using Word = FeatureWord<T>;
  const Operand<T, Word> operand(prototypes, num_prototypes, dim, true, false);
  for (int64_t a = 0; a < num_problems; ++a) {
    Sweeps<T, Word> sweeps(features + a * num_samples * dim, operand,
                           sample_weights == nullptr ? nullptr : sample_weights + a * num_samples,
                           num_samples, num_prototypes, dim, epsilon, threads, keep, norm);
    run(a, sweeps);
  }
}

template <typename T>
void add(Kernels<T>& table) {
  table.swav_column_stats = [](const T* features, const T* prototypes, const T* sample_weights,
                               T* column_max, T* sums, int64_t num_problems, int64_t num_samples,
                               int64_t num_prototypes, int64_t dim, double epsilon, int threads) {
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, threads, false, true, [&](int64_t a, auto& sweeps) {
                  sweeps.first(column_max + a * num_prototypes, sums + a * num_prototypes);
                });
    scale_all(column_max, T(kLn2), num_problems * num_prototypes, column_max);
  };
  table.swav_column_sums = [](const T* features, const T* prototypes, const T* f,
                              const T* sample_weights, T* sums, int64_t num_problems,
                              int64_t num_samples, int64_t num_prototypes, int64_t dim,
                              double epsilon, int threads) {
    Scratch base_2(num_prototypes * sizeof(T));
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, threads, false, true, [&](int64_t a, auto& sweeps) {
                  scale_all(f + a * num_prototypes, T(kLog2E), num_prototypes, base_2.as<T>());
                  sweeps.later(base_2.as<T>(), sums + a * num_prototypes);
                });
  };
  table.swav_potentials = [](const T* features, const T* prototypes, const T* sample_weights,
                             const T* log_prototype_weights, T* f, int64_t num_problems,
                             int64_t num_samples, int64_t num_prototypes, int64_t dim,
                             double epsilon, int iterations, int threads) {
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, threads, iterations > 1,
                sample_weights != nullptr || log_prototype_weights != nullptr,
                [&](int64_t a, auto& sweeps) {
                  iterate<T>([&](T* column_max, T* sums) { sweeps.first(column_max, sums); },
                             [&](const T* f_now, T* sums) { sweeps.later(f_now, sums); },
                             log_prototype_weights, num_prototypes, iterations,
                             f + a * num_prototypes);
                });
  };
}

}  // namespace

void add_swav_potentials(Kernels<float>& single, [[maybe_unused]] Kernels<double>& twice) {
  add(single);
#ifdef SWAV_HAS_FLOAT64
  add(twice);
#endif
}

}  // namespace swav::cpu::SWAV_ISA
