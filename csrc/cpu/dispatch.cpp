// Which instruction set runs: picked once, when the module is loaded.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "tables.h"
#if defined(SWAV_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

SWAV_DECLARE_OPS(generic)
#ifdef SWAV_X86
SWAV_DECLARE_OPS(avx2)
SWAV_DECLARE_OPS(avx512)
SWAV_DECLARE_OPS(avx512bf16)
SWAV_DECLARE_OPS(amx)
#endif

namespace swav::cpu {
namespace {

struct InstructionSet {
  const char* name;
  bool (*is_available)();
  bool (*is_preferred)();  // to those above it in the table
  void (*fill)(Kernels<float>&, Kernels<double>&);
  void (*fill_bfloat16)(Kernels<float>&);  // products of bfloat16 numbers; null: as float32
};

#define SWAV_FILL(ISA)                                   \
  [](Kernels<float>& single, Kernels<double>& twice) {   \
    ISA::add_prototype_scores(single, twice);            \
    ISA::add_sinkhorn(single, twice);                    \
    ISA::add_swapped_cross_entropy(single, twice);       \
    ISA::add_swav_potentials(single, twice);             \
    ISA::add_swav_loss(single, twice);                   \
    ISA::add_prototype_distillation_loss(single, twice); \
  }
// A set without float64 takes that of AVX2
#define SWAV_FILL_FLOAT32(ISA)                         \
  [](Kernels<float>& single, Kernels<double>& twice) { \
    SWAV_FILL(avx2)(single, twice);                    \
    SWAV_FILL(ISA)(single, twice);                     \
  }
// What such sets are compiled for: the rest has no use for what they add
#define SWAV_FILL_BFLOAT16(ISA)                         \
  [](Kernels<float>& single) {                          \
    Kernels<double> none;                               \
    ISA::add_swav_potentials(single, none);             \
    ISA::add_swav_loss(single, none);                   \
    ISA::add_prototype_distillation_loss(single, none); \
  }

bool always() { return true; }
#ifdef SWAV_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// Intel's processors take as long for it as for four float32 multiply-adds, which do twice as much
bool has_fast_bfloat16() { return __builtin_cpu_is("amd"); }

// The tile unit, which Linux lets a process use only on request
bool has_amx() {
#ifdef __linux__
  unsigned a, b, c, d;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return (d & kBfloat16) && (d & kTiles) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// From the slowest to the fastest
const InstructionSet kSets[] = {
    {"generic", always, always, SWAV_FILL(generic), nullptr},
#ifdef SWAV_X86
    {"avx2", has_avx2, always, SWAV_FILL(avx2), nullptr},
    {"avx512", has_avx512, always, SWAV_FILL_FLOAT32(avx512), nullptr},
    {"avx512bf16", has_avx512bf16, has_fast_bfloat16, SWAV_FILL_FLOAT32(avx512),
     SWAV_FILL_BFLOAT16(avx512bf16)},
    {"amx", has_amx, always, SWAV_FILL_FLOAT32(avx512), SWAV_FILL_BFLOAT16(amx)},
#endif
};

const InstructionSet& choose() {
  const char* variable = std::getenv("SWAV_KERNELS_CPU");
  const std::string wanted = variable == nullptr ? "" : variable;
  const InstructionSet* best = nullptr;
  std::string available;
  for (const InstructionSet& set : kSets) {
    if (!set.is_available()) continue;
    available += (available.empty() ? "" : ", ") + std::string(set.name);
    if (wanted.empty() ? set.is_preferred() : wanted == set.name) best = &set;
  }
  if (best == nullptr)
    throw std::runtime_error("SWAV_KERNELS_CPU is '" + wanted + "', but this processor has " +
                             available + ": set it to one of these, or unset it");
  return *best;
}

struct Chosen {
  const InstructionSet& set = choose();
  Kernels<float> single{}, bfloat16{};
  Kernels<double> twice{};
  Chosen() {
    set.fill(single, twice);
    bfloat16 = single;
    if (set.fill_bfloat16 != nullptr) set.fill_bfloat16(bfloat16);
  }
};

const Chosen& chosen() {
  static const Chosen chosen;
  return chosen;
}

}  // namespace

template <>
const Kernels<float>& kernels<float>(bool bfloat16) {
  return bfloat16 ? chosen().bfloat16 : chosen().single;
}
template <>
const Kernels<double>& kernels<double>(bool) {
  return chosen().twice;
}
const char* instruction_set() { return chosen().set.name; }

}  // namespace swav::cpu
