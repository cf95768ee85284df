// Products of bfloat16 pairs by the tile unit of Intel's processors (AMX): 16 x 16 sums at a time,
// sixteen times the rate of float32 multiply-adds.
#pragma once

#include <algorithm>

#include "words.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kTileSide = 16;  // rows, columns and words of a tile

#ifdef __AMX_BF16__
constexpr bool kHasTiles = true;

// gcc's intrinsics do not tell the compiler what memory they read (of a configuration 8 bytes of
// 64), so stores to it might come after them
inline void finish_stores(const void* read) { __asm__ volatile("" : : "r"(read) : "memory"); }

// Sets the tile unit up for whole tiles, as long as it lives; one for each task of a thread
class TileScope {
 public:
  TileScope() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = 4 * kTileSide;  // bytes a row
      config[48 + tile] = kTileSide;          // rows
    }
    finish_stores(config);
    _tile_loadconfig(config);
  }
  ~TileScope() { _tile_release(); }
};

// [16, 16] or [16, 32] sums at out: tiles 0 and 1, by words of `a` in tile 2, of `b` in 3 and 4
template <bool kTwoColumns>
inline void tile_sums(const Pair* a, int64_t a_stride, const Pair* b, int64_t b_stride,
                      int64_t steps, float* out, int64_t out_stride, bool accumulate) {
  const int64_t a_bytes = a_stride * 4, b_bytes = b_stride * 4, out_bytes = out_stride * 4;
  if (accumulate) {
    _tile_loadd(0, out, out_bytes);
    if (kTwoColumns) _tile_loadd(1, out + kTileSide, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t t = 0; t < steps; t += kTileSide) {
    _tile_loadd(2, a + t, a_bytes);
    _tile_loadd(3, b + t * b_stride, b_bytes);
    _tile_dpbf16ps(0, 2, 3);
    if (!kTwoColumns) continue;
    _tile_loadd(4, b + t * b_stride + kTileSide, b_bytes);
    _tile_dpbf16ps(1, 2, 4);
  }
  _tile_stored(0, out, out_bytes);
  if (kTwoColumns) _tile_stored(1, out + kTileSide, out_bytes);
}

// [32, 32] sums at out: each tile that is loaded serves two products
inline void four_tile_sums(const Pair* a, int64_t a_stride, const Pair* b, int64_t b_stride,
                           int64_t steps, float* out, int64_t out_stride, bool accumulate) {
  const int64_t a_bytes = a_stride * 4, b_bytes = b_stride * 4, out_bytes = out_stride * 4;
  float* lower = out + kTileSide * out_stride;
  if (accumulate) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, out + kTileSide, out_bytes);
    _tile_loadd(2, lower, out_bytes);
    _tile_loadd(3, lower + kTileSide, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t t = 0; t < steps; t += kTileSide) {
    _tile_loadd(4, a + t, a_bytes);
    _tile_loadd(5, a + t + kTileSide * a_stride, a_bytes);
    _tile_loadd(6, b + t * b_stride, b_bytes);
    _tile_loadd(7, b + t * b_stride + kTileSide, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + kTileSide, out_bytes);
  _tile_stored(2, lower, out_bytes);
  _tile_stored(3, lower + kTileSide, out_bytes);
}

// out [rows, columns] (+)= a [rows, steps] b [steps, columns], all of whole tiles
inline void multiply_tiles(const Pair* a, int64_t a_stride, const Pair* b, int64_t b_stride,
                           int64_t rows, int64_t columns, int64_t steps, float* out,
                           int64_t out_stride, bool accumulate) {
  finish_stores(a);
  finish_stores(b);
  for (int64_t j = 0; j < columns; j += 2 * kTileSide) {
    const bool two_columns = j + kTileSide < columns;
    for (int64_t i = 0; i < rows; i += 2 * kTileSide) {
      const Pair* a_rows = a + i * a_stride;
      float* p = out + i * out_stride + j;
      if (two_columns && i + kTileSide < rows) {
        four_tile_sums(a_rows, a_stride, b + j, b_stride, steps, p, out_stride, accumulate);
        continue;
      }
      for (int64_t k = i; k < std::min(rows, i + 2 * kTileSide); k += kTileSide) {
        const Pair* row = a + k * a_stride;
        float* q = out + k * out_stride + j;
        if (two_columns)
          tile_sums<true>(row, a_stride, b + j, b_stride, steps, q, out_stride, accumulate);
        else
          tile_sums<false>(row, a_stride, b + j, b_stride, steps, q, out_stride, accumulate);
      }
    }
  }
}
#else
constexpr bool kHasTiles = false;
struct TileScope {
  TileScope() {}  // so that an unused one is no warning
};
inline void multiply_tiles(const Pair*, int64_t, const Pair*, int64_t, int64_t, int64_t, int64_t,
                           float*, int64_t, bool) {}
#endif

template <typename W>
constexpr bool kUsesTiles = kHasTiles && std::is_same_v<W, Pair>;

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
