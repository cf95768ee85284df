// Which instruction set runs: picked once, when the module is loaded.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "tables.h"

SWAV_DECLARE_OPS(generic)
#ifdef SWAV_X86
SWAV_DECLARE_OPS(avx2)
SWAV_DECLARE_OPS(avx512)
#endif

namespace swav::cpu {
namespace {

struct Choice {
  const char* name;
  Kernels<float> single;
  Kernels<double> twice;
};

#define SWAV_FILL(ISA)                                           \
  {                                                              \
    choice.name = #ISA;                                          \
    ISA::add_prototype_scores(choice.single, choice.twice);      \
    ISA::add_sinkhorn(choice.single, choice.twice);              \
    ISA::add_swapped_cross_entropy(choice.single, choice.twice); \
    ISA::add_swav_potentials(choice.single, choice.twice);       \
    ISA::add_swav_loss(choice.single, choice.twice);             \
  }

Choice choose() {
  const char* variable = std::getenv("SWAV_KERNELS_CPU");
  const std::string wanted = variable == nullptr ? "" : variable;
  Choice choice{};
#ifdef SWAV_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
#else
  const bool avx2 = false, avx512 = false;
#endif
  const bool known = wanted.empty() || wanted == "generic" || (wanted == "avx2" && avx2) ||
                     (wanted == "avx512" && avx512);
  if (!known)
    throw std::runtime_error("SWAV_KERNELS_CPU is '" + wanted +
                             "', but this processor has generic" + (avx2 ? ", avx2" : "") +
                             (avx512 ? ", avx512" : "") + ": set it to one of these, or unset it");
#ifdef SWAV_X86
  if (wanted == "avx512" || (wanted.empty() && avx512)) {
    SWAV_FILL(avx512)
  } else if (wanted == "avx2" || (wanted.empty() && avx2)) {
    SWAV_FILL(avx2)
  } else
#endif
    SWAV_FILL(generic)
  return choice;
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return chosen().single;
}
template <>
const Kernels<double>& kernels<double>() {
  return chosen().twice;
}
const char* instruction_set() { return chosen().name; }

}  // namespace swav::cpu
