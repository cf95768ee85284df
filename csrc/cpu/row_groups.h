// Rows of a matrix over threads and in groups.
#pragma once

#include <cstdint>
#include <type_traits>

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int kGroupRows = 3;       // rows that share each access to the column sums
constexpr int64_t kMostSlots = 32;  // pieces of rows with column sums of their own
constexpr int64_t kSlotRows = 64;   // least rows of a slot, and most rows of a running sum

// body(group size, first row) over rows in groups that share each access to the column sums
template <typename Body>
inline void in_groups(int64_t begin, int64_t end, const Body& body) {
  int64_t row = begin;
  for (; row + kGroupRows <= end; row += kGroupRows)
    body(std::integral_constant<int, kGroupRows>{}, row);
  for (; row < end; ++row) body(std::integral_constant<int, 1>{}, row);
}

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
