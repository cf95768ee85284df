// Every kernel by several threads, under the thread sanitizer: on std::thread, whose every
// synchronisation it knows, where the module uses OpenMP. The bits may not depend on the number of
// threads either. With the argument `planted_race`: a call whose tasks share memory.
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/kernels.h"

using namespace swav;

namespace {

// Sizes, each for what it makes the kernels share out
struct Shape {
  int64_t num_crops, num_samples, num_prototypes, dim;
  const char* reason;
};
const Shape kShapes[] = {
    {3, 65, 37, 9, "two slots of rows, the second of one row; several slots of prototypes"},
    {2, 130, 601, 4, "Sinkhorns with two threads and three slots"},
    {2, 1, 1, 1, "more threads than tasks"},
};

template <typename T>
class Case {
 public:
  using Numbers = std::vector<T>;

  explicit Case(const Shape& shape)
      : v_(shape.num_crops),
        b_(shape.num_samples),
        k_(shape.num_prototypes),
        d_(shape.dim),
        features_(numbers(v_ * b_ * d_, 0.3)),
        prototypes_(numbers(k_ * d_, 0.3)),
        scores_(numbers(v_ * b_ * k_, 1)),
        weights_(numbers(2 * b_, 0.5)),
        log_r_(numbers(k_, 1)),
        f_(numbers(2 * k_, 1)),
        codes_(2 * b_ * k_, T(1) / T(k_)) {
    for (T& weight : weights_) weight += T(1);
  }

  // Results of every kernel by every way through it, in one row; the kernels in csrc/kernels.h
  static_assert(sizeof(cpu::Kernels<T>) == 13 * sizeof(void (*)()),
                "a new kernel: run() must call it too");
  Numbers run(int threads) const {
    const cpu::Kernels<T>& kernels = cpu::kernels<T>();
    Numbers all;
    const auto out = [&](int64_t count, const std::function<void(T*)>& call) {
      Numbers result(size_t(count), T(7));
      call(result.data());
      all.insert(all.end(), result.begin(), result.end());
    };
    const T *z = features_.data(), *c = prototypes_.data(), *f = f_.data();
    const int64_t problem = b_ * k_, potentials = 2 * k_;

    out(v_ * problem, [&](T* p) { kernels.prototype_scores(z, c, p, v_ * b_, k_, d_, threads); });
    out(v_ * b_ * d_ + k_ * d_, [&](T* p) {
      kernels.prototype_scores_gradients(scores_.data(), z, c, p, p + v_ * b_ * d_, v_ * b_, k_, d_,
                                         threads);
    });

    for (const double epsilon : {0.05, 0.005})  // in the linear domain and in logarithms
      for (const T* w : {static_cast<const T*>(nullptr), weights_.data()}) {
        const T* log_r = w == nullptr ? nullptr : log_r_.data();
        for (const bool bfloat16 : {false, true}) {
          out(potentials, [&](T* p) {
            kernels.sinkhorn_potentials(scores(), w, log_r, p, 2, b_, k_, epsilon, 3, bfloat16,
                                        threads);
          });
          out(potentials, [&](T* p) {
            cpu::kernels<T>(bfloat16).swav_potentials(z, c, w, log_r, p, 2, b_, k_, d_, epsilon, 3,
                                                      threads);
          });
        }
        out(2 * potentials, [&](T* p) {
          kernels.sinkhorn_column_stats(scores(), w, p, p + potentials, 2, b_, k_, epsilon,
                                        threads);
        });
        out(potentials, [&](T* p) {
          kernels.sinkhorn_column_sums(scores(), f, w, p, 2, b_, k_, epsilon, threads);
        });
        out(2 * potentials, [&](T* p) {
          kernels.swav_column_stats(z, c, w, p, p + potentials, 2, b_, k_, d_, epsilon, threads);
        });
        out(potentials, [&](T* p) {
          kernels.swav_column_sums(z, c, f, w, p, 2, b_, k_, d_, epsilon, threads);
        });
        out(2 * problem,
            [&](T* p) { kernels.sinkhorn(scores(), p, 2, b_, k_, epsilon, 3, threads); });
      }
    for (const bool hard : {false, true}) {
      out(2 * problem, [&](T* p) {
        kernels.sinkhorn_codes(scores(), f, p, 2, b_, k_, 0.05, hard, true, threads);
      });
      for (const bool bfloat16 : {false, true})
        out(1 + v_ * b_ * d_ + k_ * d_ + 4 * b_ + potentials, [&](T* p) {
          T *d_z = p + 1, *d_c = d_z + v_ * b_ * d_, *entropy = d_c + k_ * d_;
          std::vector<int64_t> nearest(size_t(2 * b_));
          const cpu::CodeStatistics<T> statistics{nearest.data(), entropy, entropy + 2 * b_,
                                                  entropy + 4 * b_};
          cpu::kernels<T>(bfloat16).swav_loss(z, c, f, p, d_z, d_c, statistics, b_, k_, d_,
                                              settings(hard), threads);
        });
    }
    out(1 + v_ * b_ * d_ + k_ * d_, [&](T* p) {
      T *d_z = p + 1, *d_c = d_z + v_ * b_ * d_;
      kernels.prototype_distillation_loss(z, c, {z, c, d_}, f, weights_.data(), p, d_z, d_c, b_, k_,
                                          d_, settings(false), threads);
    });
    out(1 + v_ * problem, [&](T* p) {
      kernels.swapped_cross_entropy(scores(), {codes_.data(), kDtype}, p, p + 1, b_, k_,
                                    settings(false), threads);
    });
    return all;
  }

  // A codes kernel in whose output, a row further on, its own scores lie
  void planted_race() const {
    Numbers both(scores_.begin(), scores_.begin() + (b_ + 1) * k_);
    cpu::kernels<T>().sinkhorn_codes({both.data(), kDtype}, f_.data(), both.data() + k_, 1, b_, k_,
                                     0.05, false, true, 4);
  }

 private:
  static constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  Scores scores() const { return {scores_.data(), kDtype}; }
  cpu::LossSettings settings(bool hard) const {
    static const int64_t assign[] = {0, 1};
    return {v_, 2, assign, 0.1, 0.05, hard};
  }

  // in [-scale, scale], the same in every run
  static Numbers numbers(int64_t count, double scale) {
    Numbers result(size_t(count), T(0));
    uint32_t state = uint32_t(count);
    for (T& x : result) {
      state = state * 1664525u + 1013904223u;
      x = T((double(state >> 8) / double(1 << 23) - 1) * scale);
    }
    return result;
  }

  const int64_t v_, b_, k_, d_;
  const Numbers features_, prototypes_, scores_;
  Numbers weights_;
  const Numbers log_r_, f_, codes_;
};

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Number of differences, which is 0
template <typename T>
int check(const Shape& shape, const char* type) {
  const Case<T> one(shape);
  const std::vector<T> wanted = one.run(1);
  int different = !same(one.run(5), wanted);
  // two callers at once, each with threads of its own
  std::vector<T> results[2];
  std::vector<std::thread> callers;
  for (std::vector<T>& result : results) callers.emplace_back([&] { result = one.run(2); });
  for (std::thread& caller : callers) caller.join();
  for (const std::vector<T>& result : results) different += !same(result, wanted);
  std::printf("%s, %s: %zu numbers, %d of 3 runs differ from that of one thread\n", type,
              shape.reason, wanted.size(), different);
  std::fflush(stdout);
  return different;
}

}  // namespace

int main(int count, char** arguments) {
  std::printf("instruction set %s\n", cpu::instruction_set());
  if (count > 1 && std::string(arguments[1]) == "planted_race") {
    Case<float>(kShapes[1]).planted_race();
    return 0;
  }
  int different = 0;
  for (const Shape& shape : kShapes) different += check<float>(shape, "float32");
  different += check<double>(kShapes[0], "float64");
  return different == 0 ? 0 : 1;
}
