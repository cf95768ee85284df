// The module swav_kernels._C: addresses and sizes in, typed pointers to the kernels. The only file
// that knows Python; it knows no torch, so one build serves every version of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace py = pybind11;
using namespace swav;
using Address = uintptr_t;

namespace {

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Scores scores_at(Address address, int dtype) { return {at<void>(address), Dtype(dtype)}; }

// How often each kernel ran: tests prove by it which backend did the work
std::map<std::string, std::atomic<int64_t>> calls;

// module.name = call, counted, without the GIL
template <typename... Args>
void define(py::module_& module, const char* name, void (*call)(Args...)) {
  std::atomic<int64_t>& count = calls[name];
  module.def(name, [call, &count](Args... args) {
    count.fetch_add(1, std::memory_order_relaxed);
    const py::gil_scoped_release release;
    call(args...);
  });
}

#ifdef SWAV_CUDA
// The same for kernels that report errors
template <typename... Args>
void define(py::module_& module, const char* name, cuda::Error (*call)(Args...)) {
  std::atomic<int64_t>& count = calls[std::string("cuda.") + name];
  module.def(name, [call, name, &count](Args... args) {
    count.fetch_add(1, std::memory_order_relaxed);
    cuda::Error error;
    {
      const py::gil_scoped_release release;
      error = call(args...);
    }
    if (error != nullptr) throw std::runtime_error(std::string(name) + ": CUDA error: " + error);
  });
}
#endif

template <typename T>
void define_cpu(py::module_ module) {
  static const cpu::Kernels<T>& kernels = cpu::kernels<T>();
  constexpr auto& for_features = cpu::kernels<T>;  // whose products may be of bfloat16 numbers
  using Assign = std::vector<int64_t>;

  define(
      module, "prototype_scores",
      +[](Address features, Address prototypes, Address scores, int64_t num_samples,
          int64_t num_prototypes, int64_t dim, int threads) {
        kernels.prototype_scores(at<T>(features), at<T>(prototypes), at<T>(scores), num_samples,
                                 num_prototypes, dim, threads);
      });
  define(
      module, "prototype_scores_gradients",
      +[](Address d_scores, Address features, Address prototypes, Address d_features,
          Address d_prototypes, int64_t num_samples, int64_t num_prototypes, int64_t dim,
          int threads) {
        kernels.prototype_scores_gradients(at<T>(d_scores), at<T>(features), at<T>(prototypes),
                                           at<T>(d_features), at<T>(d_prototypes), num_samples,
                                           num_prototypes, dim, threads);
      });

  define(
      module, "sinkhorn_column_stats",
      +[](Address scores, int dtype, Address sample_weights, Address column_max,
          Address column_sums, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          double epsilon, int threads) {
        kernels.sinkhorn_column_stats(scores_at(scores, dtype), at<T>(sample_weights),
                                      at<T>(column_max), at<T>(column_sums), num_problems,
                                      num_samples, num_prototypes, epsilon, threads);
      });
  define(
      module, "sinkhorn_column_sums",
      +[](Address scores, int dtype, Address f, Address sample_weights, Address column_sums,
          int64_t num_problems, int64_t num_samples, int64_t num_prototypes, double epsilon,
          int threads) {
        kernels.sinkhorn_column_sums(scores_at(scores, dtype), at<T>(f), at<T>(sample_weights),
                                     at<T>(column_sums), num_problems, num_samples, num_prototypes,
                                     epsilon, threads);
      });
  define(
      module, "sinkhorn_potentials",
      +[](Address scores, int dtype, Address sample_weights, Address log_prototype_weights,
          Address f, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          double epsilon, int iterations, bool bfloat16, int threads) {
        kernels.sinkhorn_potentials(
            scores_at(scores, dtype), at<T>(sample_weights), at<T>(log_prototype_weights), at<T>(f),
            num_problems, num_samples, num_prototypes, epsilon, iterations, bfloat16, threads);
      });
  define(
      module, "sinkhorn_codes",
      +[](Address scores, int dtype, Address f, Address codes, int64_t num_problems,
          int64_t num_samples, int64_t num_prototypes, double epsilon, bool hard, bool normalized,
          int threads) {
        kernels.sinkhorn_codes(scores_at(scores, dtype), at<T>(f), at<T>(codes), num_problems,
                               num_samples, num_prototypes, epsilon, hard, normalized, threads);
      });

  define(
      module, "sinkhorn",
      +[](Address scores, int dtype, Address codes, int64_t num_problems, int64_t num_samples,
          int64_t num_prototypes, double epsilon, int iterations, int threads) {
        kernels.sinkhorn(scores_at(scores, dtype), at<T>(codes), num_problems, num_samples,
                         num_prototypes, epsilon, iterations, threads);
      });

  define(
      module, "swapped_cross_entropy",
      +[](Address scores, int scores_dtype, Address codes, int codes_dtype, Address loss,
          Address d_scores, int64_t num_crops, int64_t num_samples, int64_t num_prototypes,
          Assign assign, double temperature, int threads) {
        const cpu::LossSettings settings{
            num_crops, int64_t(assign.size()), assign.data(), temperature, 0, false};
        kernels.swapped_cross_entropy(scores_at(scores, scores_dtype),
                                      scores_at(codes, codes_dtype), at<T>(loss), at<T>(d_scores),
                                      num_samples, num_prototypes, settings, threads);
      });

  define(
      module, "swav_column_stats",
      +[](Address features, Address prototypes, Address sample_weights, Address column_max,
          Address column_sums, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          int64_t dim, double epsilon, bool bfloat16, int threads) {
        for_features(bfloat16).swav_column_stats(
            at<T>(features), at<T>(prototypes), at<T>(sample_weights), at<T>(column_max),
            at<T>(column_sums), num_problems, num_samples, num_prototypes, dim, epsilon, threads);
      });
  define(
      module, "swav_column_sums",
      +[](Address features, Address prototypes, Address f, Address sample_weights,
          Address column_sums, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          int64_t dim, double epsilon, bool bfloat16, int threads) {
        for_features(bfloat16).swav_column_sums(
            at<T>(features), at<T>(prototypes), at<T>(f), at<T>(sample_weights), at<T>(column_sums),
            num_problems, num_samples, num_prototypes, dim, epsilon, threads);
      });
  define(
      module, "swav_potentials",
      +[](Address features, Address prototypes, Address sample_weights,
          Address log_prototype_weights, Address f, int64_t num_problems, int64_t num_samples,
          int64_t num_prototypes, int64_t dim, double epsilon, int iterations, bool bfloat16,
          int threads) {
        for_features(bfloat16).swav_potentials(
            at<T>(features), at<T>(prototypes), at<T>(sample_weights), at<T>(log_prototype_weights),
            at<T>(f), num_problems, num_samples, num_prototypes, dim, epsilon, iterations, threads);
      });
  define(
      module, "swav_loss",
      +[](Address features, Address prototypes, Address f, Address loss, Address d_features,
          Address d_prototypes, std::vector<Address> statistics, int64_t num_crops,
          int64_t num_samples, int64_t num_prototypes, int64_t dim, Assign assign,
          double temperature, double epsilon, bool hard, bool bfloat16, int threads) {
        const cpu::LossSettings settings{
            num_crops, int64_t(assign.size()), assign.data(), temperature, epsilon, hard};
        cpu::CodeStatistics<T> out{};
        if (!statistics.empty())
          out = {at<int64_t>(statistics.at(0)), at<T>(statistics.at(1)), at<T>(statistics.at(2)),
                 at<T>(statistics.at(3))};
        for_features(bfloat16).swav_loss(at<T>(features), at<T>(prototypes), at<T>(f), at<T>(loss),
                                         at<T>(d_features), at<T>(d_prototypes), out, num_samples,
                                         num_prototypes, dim, settings, threads);
      });
  define(
      module, "prototype_distillation_loss",
      +[](Address features, Address prototypes, Address teacher_features,
          Address teacher_prototypes, Address f, Address sample_weights, Address loss,
          Address d_features, Address d_prototypes, int64_t num_crops, int64_t num_samples,
          int64_t num_prototypes, int64_t dim, int64_t teacher_dim, Assign assign,
          double temperature, double epsilon, bool bfloat16, int threads) {
        const cpu::LossSettings settings{
            num_crops, int64_t(assign.size()), assign.data(), temperature, epsilon, false};
        for_features(bfloat16).prototype_distillation_loss(
            at<T>(features), at<T>(prototypes),
            {at<T>(teacher_features), at<T>(teacher_prototypes), teacher_dim}, at<T>(f),
            at<T>(sample_weights), at<T>(loss), at<T>(d_features), at<T>(d_prototypes), num_samples,
            num_prototypes, dim, settings, threads);
      });
}

#ifdef SWAV_CUDA
// In the order of the CPU's arguments; a workspace, a device and a stream take the place of threads
template <typename T>
void define_cuda(py::module_ module) {
  using Kernels = cuda::Sinkhorn<T>;
  define(
      module, "sinkhorn_column_stats",
      +[](Address scores, int dtype, Address sample_weights, Address column_max,
          Address column_sums, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          double epsilon, Address workspace, int device, Address stream) {
        return Kernels::column_stats(
            {scores_at(scores, dtype), num_problems, num_samples, num_prototypes, epsilon,
             at<void>(workspace), device, at<void>(stream)},
            at<T>(sample_weights), at<T>(column_max), at<T>(column_sums));
      });
  define(
      module, "sinkhorn_column_sums",
      +[](Address scores, int dtype, Address f, Address sample_weights, Address column_sums,
          int64_t num_problems, int64_t num_samples, int64_t num_prototypes, double epsilon,
          Address workspace, int device, Address stream) {
        return Kernels::column_sums(
            {scores_at(scores, dtype), num_problems, num_samples, num_prototypes, epsilon,
             at<void>(workspace), device, at<void>(stream)},
            at<T>(f), at<T>(sample_weights), at<T>(column_sums));
      });
  define(
      module, "sinkhorn_potentials",
      +[](Address scores, int dtype, Address sample_weights, Address log_prototype_weights,
          Address f, int64_t num_problems, int64_t num_samples, int64_t num_prototypes,
          double epsilon, int iterations, bool /* bfloat16: nothing to gain here */,
          Address workspace, int device, Address stream) {
        return Kernels::potentials(
            {scores_at(scores, dtype), num_problems, num_samples, num_prototypes, epsilon,
             at<void>(workspace), device, at<void>(stream)},
            at<T>(sample_weights), at<T>(log_prototype_weights), at<T>(f), iterations);
      });
  define(
      module, "sinkhorn_codes",
      +[](Address scores, int dtype, Address f, Address codes, int64_t num_problems,
          int64_t num_samples, int64_t num_prototypes, double epsilon, bool hard, bool normalized,
          Address workspace, int device, Address stream) {
        return Kernels::codes({scores_at(scores, dtype), num_problems, num_samples, num_prototypes,
                               epsilon, at<void>(workspace), device, at<void>(stream)},
                              at<T>(f), at<T>(codes), hard, normalized);
      });
  define(
      module, "sinkhorn",
      +[](Address scores, int dtype, Address codes, int64_t num_problems, int64_t num_samples,
          int64_t num_prototypes, double epsilon, int iterations, Address workspace, int device,
          Address stream) {
        return Kernels::potentials_and_codes(
            {scores_at(scores, dtype), num_problems, num_samples, num_prototypes, epsilon,
             at<void>(workspace), device, at<void>(stream)},
            at<T>(codes), iterations);
      });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of swav_kernels; addresses in, see csrc/kernels.h.";
  module.attr("__version__") = SWAV_VERSION;
  py::module_ cpu_module = module.def_submodule("cpu");
  cpu_module.def("instruction_set", &cpu::instruction_set);
  define_cpu<float>(cpu_module.def_submodule("float32"));
  define_cpu<double>(cpu_module.def_submodule("float64"));
#ifdef SWAV_CUDA
  py::module_ cuda_module = module.def_submodule("cuda");
  cuda_module.def("sinkhorn_workspace", [](int dtype, int64_t num_problems, int64_t num_samples,
                                           int64_t num_prototypes, int device) {
    return cuda::sinkhorn_workspace(Dtype(dtype), num_problems, num_samples, num_prototypes,
                                    device);
  });
  cuda_module.def("plan_on_chip", [](int dtype, int64_t num_samples, int64_t num_prototypes,
                                     int processors, int shared_bytes) {
    const cuda::OnChipPlan plan =
        cuda::plan_on_chip(Dtype(dtype), num_samples, num_prototypes, processors, shared_bytes);
    return py::make_tuple(plan.rows, plan.blocks, plan.problems, plan.shared_bytes);
  });
  define_cuda<float>(cuda_module.def_submodule("float32"));
  define_cuda<double>(cuda_module.def_submodule("float64"));
#endif
  module.def("calls", [] {
    std::map<std::string, int64_t> counts;
    for (const auto& [name, count] : calls) counts[name] = count.load();
    return counts;
  });
}
