// Scores, codes, cross-entropy and both gradients, a chunk of samples with all their crops at a
// time.
//
// Two visits of a chunk's scores [K, lanes], slots of prototypes in parallel. The first computes
// them with the log-sum-exp of the predictions (s / temperature) and of the codes (s / epsilon +
// f, of a teacher's scores [K, coded lanes] if there is one). The second turns them in place into
// the gradient n_v p_v - sum_{i in A, i != v} q_i and, while the block is in the L1 cache,
// multiplies it into both gradients.
#include "cross_entropy.h"

#include "crop_lanes.h"
#include "gradient_block.h"
#include "lane_state.h"
#include "potentials.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

template <typename T, typename W>
class Loss {
 public:
  explicit Loss(const CrossEntropyCall<T>& call)
      : call_(call),
        settings_(call.settings),
        num_samples_(call.num_samples),
        num_prototypes_(call.num_prototypes),
        dim_(call.dim),
        has_teacher_(call.teacher.features != nullptr),
        scale_(T(kLog2E / settings_.temperature)),
        code_scale_(T(kLog2E / settings_.epsilon)),
        weight_(1 / (num_pairs(settings_) * double(std::max<int64_t>(1, num_samples_)))),
        chunk_samples_(chunk_samples<T, W>(
            num_samples_, settings_.num_crops,
            settings_.num_crops + (has_teacher_ ? settings_.num_assign : 0), num_prototypes_)),
        crops_(call.features, call.prototypes, settings_.num_crops, num_samples_, num_prototypes_,
               dim_, chunk_samples_, call.d_features != nullptr),
        teacher_(call.teacher.features, call.teacher.prototypes, settings_.num_assign, num_samples_,
                 num_prototypes_, call.teacher.dim, chunk_samples_, false),
        lanes_(crops_.lanes),
        coded_(settings_.num_assign * chunk_samples_),
        slots_(num_prototypes_, kMostSlots, kWaitingRows<W>),
        stride_(round_up(dim_, kLanes<T>)),
        state_stride_(round_up(int64_t(LaneState<T>::bytes(lanes_, coded_)), 64)),
        // one block: the memory that held a problem's scores before serves for all
        scores_and_d_rows_((crops_.scores_size + teacher_.scores_size +
                            (call.d_features == nullptr ? 0 : slots_.count * lanes_ * stride_)) *
                           sizeof(T)),
        potentials_(settings_.num_assign * num_prototypes_ * sizeof(T)),
        rows_(call.d_prototypes == nullptr ? 0 : words<W>(lanes_) * stride_ * sizeof(W)),
        log_sums_((lanes_ + coded_) * sizeof(T)),
        weights_(chunk_samples_ * sizeof(T)),
        states_(slots_.count * state_stride_) {
    scale_all(call.f, T(kLog2E), settings_.num_assign * num_prototypes_, potentials_.as<T>());
  }

  T run() {
    if (call_.d_prototypes != nullptr && num_samples_ == 0)
      std::fill(call_.d_prototypes, call_.d_prototypes + num_prototypes_ * dim_, T(0));
    if (call_.statistics.code_sums != nullptr)
      std::fill(call_.statistics.code_sums,
                call_.statistics.code_sums + settings_.num_assign * num_prototypes_, T(0));
    double loss = 0;
    for (int64_t begin = 0; begin < num_samples_; begin += chunk_samples_)
      loss += chunk_loss(begin, std::min(chunk_samples_, num_samples_ - begin));
    return T(loss * kLn2 * weight_);
  }

 private:
  double chunk_loss(int64_t begin, int64_t count) {
    pack(begin, count);
    parallel_for(slots_.count, call_.threads, [&](int64_t slot) { first_visit(slot); });
    for (int64_t slot = 1; slot < slots_.count; ++slot) state(0).merge(state(slot));
    for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
      store(log_sums_.as<T>() + lane, state(0).prediction.log_sum(lane));
    for (int64_t lane = 0; lane < coded_; lane += kLanes<T>)
      store(log_sums_.as<T>() + lanes_ + lane, state(0).code.log_sum(lane));
    parallel_for(slots_.count, call_.threads,
                 [&](int64_t slot) { second_visit(slot, begin, count); });
    if (call_.d_features != nullptr) add_up_d_features(begin, count);
    if (call_.statistics.nearest != nullptr) write_statistics(begin, count);
    double loss = 0;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t slot = 0; slot < slots_.count; ++slot) loss += state(slot).loss[j];
    return loss;
  }

  void pack(int64_t begin, int64_t count) {
    crops_.pack(begin, count);
    teacher_.pack(begin, count);
    for (int64_t j = 0; j < chunk_samples_; ++j)
      weights_.as<T>()[j] =
          call_.sample_weights == nullptr || j >= count ? T(1) : call_.sample_weights[begin + j];
    if (call_.d_prototypes != nullptr)
      copy_across<T>(
          lanes_, dim_, [&](int64_t lane) { return crops_.sample(lane); }, rows_.as<W>());
  }

  T* all_scores() const { return scores_and_d_rows_.as<T>(); }             // [K, lanes]
  T* teacher_scores() const { return all_scores() + crops_.scores_size; }  // [K, coded]
  T* d_rows() const { return teacher_scores() + teacher_.scores_size; }    // [slots, lanes, D]

  // Of which the codes of assign crop a are made, from sample j on, and the step to the next row
  const T* code_scores(int64_t row, int64_t a, int64_t j) const {
    return has_teacher_ ? teacher_scores() + row * coded_ + a * chunk_samples_ + j
                        : all_scores() + row * lanes_ + settings_.assign[a] * chunk_samples_ + j;
  }
  int64_t code_stride() const { return has_teacher_ ? coded_ : lanes_; }

  LaneState<T> state(int64_t slot) {
    return {states_.as<char>() + slot * state_stride_, lanes_, coded_};
  }

  bool wants_gradient() const {
    return call_.d_features != nullptr || call_.d_prototypes != nullptr;
  }
  bool finds_nearest() const { return call_.statistics.nearest != nullptr; }

  void first_visit(int64_t slot) {
    const TileScope scope;
    LaneState<T> lane_state = state(slot);
    lane_state.clear();
    for (int64_t row = slots_.begin(slot); row < slots_.end(slot); row += kBlockRows<W>) {
      const int64_t rows = std::min(kBlockRows<W>, slots_.end(slot) - row);
      T* scores = all_scores() + row * lanes_;
      crops_.compute(row, rows, all_scores());
      if (has_teacher_) teacher_.compute(row, rows, teacher_scores());
      for (int64_t lane = 0; lane < lanes_; lane += kLanes<T>)
        lane_state.prediction.add(scores + lane, rows, lanes_, scale_, nullptr, lane);
      for (int64_t coded = 0; coded < coded_; coded += kLanes<T>) {
        const int64_t a = coded / chunk_samples_, j = coded % chunk_samples_;
        const T* s = code_scores(row, a, j);
        const T* bias = potentials_.as<T>() + a * num_prototypes_ + row;
        lane_state.code.add(s, rows, code_stride(), code_scale_, bias, coded);
        for (int64_t k = 0; finds_nearest() && k < rows; ++k)
          lane_state.nearest.add(load(s + k * code_stride()), row + k, coded);
        for (int64_t k = 0; settings_.hard && k < rows; ++k)
          lane_state.hardest.add(load(s + k * code_stride()) * code_scale_ + bias[k], row + k,
                                 coded);
      }
    }
  }

  void second_visit(int64_t slot, int64_t begin, int64_t count) {
    LaneState<T> lane_state = state(slot);
    constexpr int64_t block = kBlockRows<W> * kLanes<T>;
    Scratch code_buffer((settings_.num_assign + 1) * block * sizeof(T));
    GradientBlock<T, W> gradient(lanes_, dim_);
    const TileScope scope;
    T *codes = code_buffer.as<T>(), *target = codes + settings_.num_assign * block;
    for (int64_t row = slots_.begin(slot); row < slots_.end(slot); row += kBlockRows<W>) {
      const int64_t rows = std::min(kBlockRows<W>, slots_.end(slot) - row);
      T* scores = all_scores() + row * lanes_;
      for (int64_t j = 0; j < chunk_samples_; j += kLanes<T>) {
        for (int64_t a = 0; a < settings_.num_assign; ++a)
          block_codes(lane_state, a, j, row, rows, count, codes + a * block);
        for (int64_t crop = 0; crop < settings_.num_crops; ++crop) {
          const int64_t predicted = sum_targets(codes, crop, rows, target);
          block_gradient(lane_state, scores + crop * chunk_samples_ + j, target, rows, predicted,
                         crop * chunk_samples_ + j, j, count);
        }
      }
      if (!wants_gradient()) continue;
      gradient.set(scores, rows);
      if (call_.d_features != nullptr)
        gradient.add_d_features(crops_.prototypes, row, d_rows() + slot * lanes_ * stride_,
                                row == slots_.begin(slot), row + rows == slots_.end(slot));
      if (call_.d_prototypes != nullptr)
        gradient.add_d_prototypes(rows_.as<W>(), stride_, call_.d_prototypes + row * dim_,
                                  begin > 0);
    }
  }

  // Codes of assign crop a for one vector of samples: [rows, vector]
  void block_codes(const LaneState<T>& lane_state, int64_t a, int64_t j, int64_t row, int64_t rows,
                   int64_t count, T* codes) {
    const int64_t coded = a * chunk_samples_ + j, stride = code_stride();
    const T* s = code_scores(row, a, j);
    const T* bias = potentials_.as<T>() + a * num_prototypes_ + row;
    const Vec<T> log_sum = load(log_sums_.as<T>() + lanes_ + coded);
    if (settings_.hard) {
      const Vec<T> at = load(state(0).hardest.at + coded), invalid = log_sum * T(0);  // NaN or 0
      for (int64_t k = 0; k < rows; ++k) {
        const Vec<T> hit = at == T(row + k) ? splat(T(1)) : Vec<T>{};
        store<T>(codes + k * kLanes<T>, hit + invalid);
      }
    } else {
      for (int64_t k = 0; k < rows; ++k)
        store<T>(codes + k * kLanes<T>,
                 exp2<T>(load(s + k * stride) * code_scale_ + bias[k] - log_sum));
    }
    if (call_.statistics.code_sums == nullptr) return;
    T* code_sums = call_.statistics.code_sums + a * num_prototypes_ + row;
    Vec<T> entropy{};
    for (int64_t k = 0; k < rows; ++k) {
      const Vec<T> q = load(codes + k * kLanes<T>);
      code_sums[k] += count - j >= kLanes<T> ? sum_lanes<T>(q) : sum_first<T>(q, count - j);
      const Vec<T> log_q = load(s + k * stride) * code_scale_ + bias[k] - log_sum;
      if (!settings_.hard) entropy -= q == T(0) ? Vec<T>{} : q * log_q;
    }
    store<T>(lane_state.entropy + coded, load(lane_state.entropy + coded) + entropy);
  }

  // The codes that a crop predicts, added up; returns their number n_v
  int64_t sum_targets(const T* codes, int64_t crop, int64_t rows, T* target) const {
    constexpr int64_t block = kBlockRows<W> * kLanes<T>;
    int64_t predicted = 0;
    for (int64_t a = 0; a < settings_.num_assign; ++a) {
      if (settings_.assign[a] == crop) continue;
      for (int64_t k = 0; k < rows * kLanes<T>; k += kLanes<T>) {
        const Vec<T> q = load(codes + a * block + k);
        store<T>(target + k, predicted == 0 ? q : load(target + k) + q);
      }
      ++predicted;
    }
    if (predicted == 0) std::fill(target, target + rows * kLanes<T>, T(0));
    return predicted;
  }

  // Loss of one crop of one vector of samples, and its gradient in the place of the scores
  void block_gradient(const LaneState<T>& lane_state, T* scores, const T* target, int64_t rows,
                      int64_t predicted, int64_t lane, int64_t j, int64_t count) const {
    const Vec<T> log_sum = load(log_sums_.as<T>() + lane);
    const Vec<T> of_q = load(weights_.as<T>() + j) * T(weight_ / settings_.temperature);
    const Vec<T> of_p = of_q * T(predicted);
    Vec<T> loss{};
    for (int64_t k = 0; k < rows; ++k) {
      const Vec<T> q = load(target + k * kLanes<T>);
      // the same rounding as in the sum, not one fused with the subtraction: K = 1 gives p = 1
      const Vec<T> log_p = load(scores + k * lanes_) * scale_ + T(0) - log_sum;
      loss -= q * log_p;
      if (wants_gradient()) store<T>(scores + k * lanes_, exp2<T>(log_p) * of_p - q * of_q);
    }
    for (int64_t i = 0; i < std::min<int64_t>(kLanes<T>, count - j); ++i)
      lane_state.loss[j + i] += double(loss[i]) * double(weights_.as<T>()[j + i]);
  }

  void add_up_d_features(int64_t begin, int64_t count) {
    const int64_t size = lanes_ * stride_;
    T* sum = d_rows();  // of the first slot, then of all
    const Pieces pieces(size, size, 4096);
    parallel_for(pieces.count, call_.threads, [&](int64_t piece) {
      for (int64_t slot = 1; slot < slots_.count; ++slot) {
        const T* part = sum + slot * size;
        for (int64_t i = pieces.begin(piece); i < pieces.end(piece); ++i) sum[i] += part[i];
      }
    });
    // [lanes, dim], or [dim, lanes] by tiles
    const int64_t lane_step = kUsesTiles<W> ? 1 : dim_, dim_step = kUsesTiles<W> ? lanes_ : 1;
    for (int64_t crop = 0; crop < settings_.num_crops; ++crop)
      for (int64_t j = 0; j < count; ++j) {
        T* out = call_.d_features + (crop * num_samples_ + begin + j) * dim_;
        const T* from = sum + (crop * chunk_samples_ + j) * lane_step;
        for (int64_t d = 0; d < dim_; ++d) out[d] = from[d * dim_step];
      }
  }

  void write_statistics(int64_t begin, int64_t count) {
    for (int64_t a = 0; a < settings_.num_assign; ++a)
      for (int64_t j = 0; j < count; ++j) {
        const int64_t coded = a * chunk_samples_ + j, out = a * num_samples_ + begin + j;
        call_.statistics.nearest[out] = int64_t(state(0).nearest.at[coded]);
        T entropy = 0;
        for (int64_t slot = 0; slot < slots_.count; ++slot) entropy += state(slot).entropy[coded];
        call_.statistics.code_entropy[out] = entropy * T(kLn2);
        const T log_sum = log_sums_.as<T>()[lanes_ + coded];
        call_.statistics.max_code[out] =
            settings_.hard ? T(1) + log_sum * T(0) : std::exp2(state(0).code.top[coded] - log_sum);
      }
  }

  const CrossEntropyCall<T>& call_;
  const LossSettings& settings_;
  const int64_t num_samples_, num_prototypes_, dim_;
  const bool has_teacher_;
  const T scale_, code_scale_;
  const double weight_;
  const int64_t chunk_samples_;  // nb
  CropLanes<T, W> crops_, teacher_;
  const int64_t lanes_, coded_;  // V nb, A nb
  const Pieces slots_;
  const int64_t stride_, state_stride_;
  Scratch scores_and_d_rows_, potentials_, rows_, log_sums_, weights_, states_;
};

}  // namespace

float cross_entropy(const CrossEntropyCall<float>& call) {
  return Loss<float, FeatureWord<float>>(call).run();
}

#ifdef SWAV_HAS_FLOAT64
double cross_entropy(const CrossEntropyCall<double>& call) {
  return Loss<double, double>(call).run();
}
#endif

}  // namespace swav::cpu::SWAV_ISA
