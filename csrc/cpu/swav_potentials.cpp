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

template <typename T, typename W>
class Sweeps {
 public:
  Sweeps(const T* features, const T* prototypes, const T* sample_weights, int64_t num_problems,
         int64_t num_samples, int64_t num_prototypes, int64_t dim, double epsilon, int threads,
         bool keep)
      : features_(features),
        prototypes_(prototypes, num_prototypes, dim, true, false),
        sample_weights_(sample_weights),
        num_problems_(num_problems),
        num_samples_(num_samples),
        num_prototypes_(num_prototypes),
        dim_(dim),
        scale_(T(kLog2E / epsilon)),
        threads_(threads),
        lanes_(std::min(kChunkLanes, round_up(num_samples, kLanes<T>))),
        chunks_(num_samples == 0 ? 0 : (num_samples + lanes_ - 1) / lanes_),
        chunk_size_(round_up(num_prototypes, kTileSide) * lanes_),
        kept_(keep ? std::min(num_problems * chunks_,
                              kMostKept / int64_t(std::max<int64_t>(1, chunk_size_) * sizeof(T)))
                   : 0),
        slots_(num_prototypes, kMostSlots, kBlockRows<W>),
        scores_((kept_ + 1) * chunk_size_ * sizeof(T)),
        packed_(packed_size<T, W>(lanes_, dim) * sizeof(W)),
        totals_(num_problems * num_prototypes * sizeof(double)),
        lane_values_((2 * slots_.count + 2) * kChunkLanes * sizeof(T)) {}

  // Maxima and sums [A, K] of 2^t, in base 2
  void first(T* column_max, T* column_sums) {
    const int64_t size = num_problems_ * num_prototypes_;
    double* totals = totals_.as<double>();
    std::fill(column_max, column_max + size, -kInf<T>);
    std::fill(totals, totals + size, 0.);
    T* bias = lane_values_.as<T>();  // log w; -inf in lanes without a sample
    over_chunks([&](int64_t a, int64_t chunk, int64_t begin, int64_t count) {
      for (int64_t lane = 0; lane < lanes_; ++lane)
        bias[lane] = lane >= count ? -kInf<T> : std::log2(weight(a, begin + lane));
      pack(a, begin, count);
      T* scores = chunk_scores(a, chunk);
      over_blocks([&](int64_t, int64_t row, int64_t rows) {
        compute(scores, row, rows);
        for (int64_t k = row; k < row + rows; ++k)
          add_column(scores + k * lanes_, bias, column_max[a * num_prototypes_ + k],
                     totals[a * num_prototypes_ + k]);
      });
    });
    for (int64_t k = 0; k < size; ++k) column_sums[k] = T(totals[k]);
  }

  // Sums [A, K] of w softmax_k; f is in base 2. After first() if scores are kept.
  void later(const T* f, T* column_sums) {
    const int64_t size = num_problems_ * num_prototypes_;
    double* totals = totals_.as<double>();
    std::fill(totals, totals + size, 0.);
    T *log_sum = lane_values_.as<T>(), *weights = log_sum + kChunkLanes;
    over_chunks([&](int64_t a, int64_t chunk, int64_t begin, int64_t count) {
      T* scores = chunk_scores(a, chunk);
      const bool is_kept = a * chunks_ + chunk < kept_;
      if (!is_kept) pack(a, begin, count);
      for (int64_t slot = 0; slot < slots_.count; ++slot) slot_sums(slot).clear(lanes_);
      over_blocks([&](int64_t slot, int64_t row, int64_t rows) {
        if (!is_kept) compute(scores, row, rows);
        for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
          slot_sums(slot).add(scores + row * lanes_ + lane, rows, lanes_, scale_,
                              f + a * num_prototypes_ + row, lane);
      });
      for (int64_t slot = 1; slot < slots_.count; ++slot)
        slot_sums(0).merge(slot_sums(slot), lanes_);
      for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>) {
        // a row without prototypes adds nothing: its terms are 2^-inf
        const Vec<T> sum = slot_sums(0).log_sum(lane);
        store<T>(log_sum + lane, sum == -kInf<T> ? Vec<T>{} : sum);
      }
      for (int64_t lane = 0; lane < lanes_; ++lane)
        weights[lane] = lane < count ? weight(a, begin + lane) : T(0);
      over_blocks([&](int64_t, int64_t row, int64_t rows) {
        for (int64_t k = row; k < row + rows; ++k) {
          const int64_t column = a * num_prototypes_ + k;
          Vec<T> sum{};
          for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
            sum += load(weights + lane) * exp2<T>(load(scores + k * lanes_ + lane) * scale_ +
                                                  f[column] - load(log_sum + lane));
          totals[column] += sum_lanes<T>(sum);
        }
      });
    });
    for (int64_t k = 0; k < size; ++k) column_sums[k] = T(totals[k]);
  }

 private:
  // body(problem, chunk, first sample, samples)
  template <typename Body>
  void over_chunks(const Body& body) {
    for (int64_t a = 0; a < num_problems_; ++a)
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        body(a, chunk, chunk * lanes_, std::min(lanes_, num_samples_ - chunk * lanes_));
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

  T weight(int64_t a, int64_t sample) const {
    return sample_weights_ == nullptr ? T(1) : sample_weights_[a * num_samples_ + sample];
  }

  void pack(int64_t a, int64_t begin, int64_t count) {
    const T* samples = features_ + (a * num_samples_ + begin) * dim_;
    for (int64_t lane = 0; lane < round_up(lanes_, kPanel<T>); ++lane)
      pack_lane(lane < count ? samples + lane * dim_ : nullptr, lane, dim_, packed_.as<W>());
  }

  T* chunk_scores(int64_t a, int64_t chunk) {
    return scores_.as<T>() + std::min(a * chunks_ + chunk, kept_) * chunk_size_;
  }

  void compute(T* scores, int64_t row, int64_t rows) {
    block_scores(prototypes_.along(row), packed_.as<W>(), rows, lanes_, dim_,
                 scores + row * lanes_);
  }

  LaneSums<T> slot_sums(int64_t slot) {
    T* first = lane_values_.as<T>() + (2 + 2 * slot) * kChunkLanes;
    return {first, first + kChunkLanes};
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

  const T* features_;
  const Operand<T, W> prototypes_;
  const T* sample_weights_;
  const int64_t num_problems_, num_samples_, num_prototypes_, dim_;
  const T scale_;
  const int threads_;
  const int64_t lanes_, chunks_, chunk_size_, kept_;
  const Pieces slots_;
  Scratch scores_, packed_, totals_, lane_values_;
};

// run(Sweeps) with the kind of products that is asked for and at hand
template <typename T, typename Run>
void with_sweeps(const T* features, const T* prototypes, const T* sample_weights,
                 int64_t num_problems, int64_t num_samples, int64_t num_prototypes, int64_t dim,
                 double epsilon, bool bfloat16, int threads, bool keep, const Run& run) {
  const auto start = [&](auto word) {
    Sweeps<T, decltype(word)> sweeps(features, prototypes, sample_weights, num_problems,
                                     num_samples, num_prototypes, dim, epsilon, threads, keep);
    run(sweeps);
  };
  if constexpr (std::is_same_v<T, float> && kHasBfloat16)
    if (bfloat16) return start(Pair{});
  start(T{});
}

template <typename T>
void add(Kernels<T>& table) {
  table.swav_column_stats = [](const T* features, const T* prototypes, const T* sample_weights,
                               T* column_max, T* sums, int64_t num_problems, int64_t num_samples,
                               int64_t num_prototypes, int64_t dim, double epsilon, bool bfloat16,
                               int threads) {
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, bfloat16, threads, false,
                [&](auto& sweeps) { sweeps.first(column_max, sums); });
    scale_all(column_max, T(kLn2), num_problems * num_prototypes, column_max);
  };
  table.swav_column_sums = [](const T* features, const T* prototypes, const T* f,
                              const T* sample_weights, T* sums, int64_t num_problems,
                              int64_t num_samples, int64_t num_prototypes, int64_t dim,
                              double epsilon, bool bfloat16, int threads) {
    const int64_t size = num_problems * num_prototypes;
    Scratch base_2(size * sizeof(T));
    scale_all(f, T(kLog2E), size, base_2.as<T>());
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, bfloat16, threads, false,
                [&](auto& sweeps) { sweeps.later(base_2.as<T>(), sums); });
  };
  table.swav_potentials = [](const T* features, const T* prototypes, const T* sample_weights,
                             const T* log_prototype_weights, T* f, int64_t num_problems,
                             int64_t num_samples, int64_t num_prototypes, int64_t dim,
                             double epsilon, int iterations, bool bfloat16, int threads) {
    with_sweeps(features, prototypes, sample_weights, num_problems, num_samples, num_prototypes,
                dim, epsilon, bfloat16, threads, iterations > 1, [&](auto& sweeps) {
                  iterate<T>([&](T* column_max, T* sums) { sweeps.first(column_max, sums); },
                             [&](const T* f_now, T* sums) { sweeps.later(f_now, sums); },
                             log_prototype_weights, num_problems, num_prototypes, iterations, f);
                });
  };
}

}  // namespace

void add_swav_potentials(Kernels<float>& single, Kernels<double>& twice) {
  add(single);
  add(twice);
}

}  // namespace swav::cpu::SWAV_ISA
