// Scores and their gradients: three matrix products, each cut over the rows of its output.
#include "operands.h"
#include "parallel.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kPieceRows = 8 * kTileRows;
constexpr int64_t kMostPieces = 1024;

template <typename T>
void scores(const T* features, const T* prototypes, T* out, int64_t num_samples,
            int64_t num_prototypes, int64_t dim, int threads) {
  constexpr int64_t panel = kTileVectors * kLanes<T>;
  const Pieces columns(num_prototypes, num_prototypes, panel);
  parallel_for(columns.count, threads, [&](int64_t piece) {
    // prototypes become vector lanes: [D, panel]
    Scratch packed(dim * panel * sizeof(T));
    T* p = packed.as<T>();
    const int64_t begin = columns.begin(piece), size = columns.end(piece) - begin;
    for (int64_t j = 0; j < panel; ++j)
      for (int64_t d = 0; d < dim; ++d)
        p[d * panel + j] = j < size ? prototypes[(begin + j) * dim + d] : T(0);
    multiply<T>(Strided<T>{features, dim, 1}, p, panel, num_samples, size, dim, out + begin,
                num_prototypes, false);
  });
}

template <typename T>
void gradients(const T* d_scores, const T* features, const T* prototypes, T* d_features,
               T* d_prototypes, int64_t num_samples, int64_t num_prototypes, int64_t dim,
               int threads) {
  if (d_features != nullptr) {
    const Operand<T, T> b(prototypes, num_prototypes, dim, false, true);
    const Pieces rows(num_samples, kMostPieces, kPieceRows);
    parallel_for(rows.count, threads, [&](int64_t piece) {
      const int64_t begin = rows.begin(piece);
      multiply<T>(Strided<T>{d_scores + begin * num_prototypes, num_prototypes, 1}, b.across(0),
                  b.across_stride(), rows.end(piece) - begin, dim, num_prototypes,
                  d_features + begin * dim, dim, false);
    });
  }
  if (d_prototypes != nullptr) {
    const Operand<T, T> b(features, num_samples, dim, false, true);
    const Pieces rows(num_prototypes, kMostPieces, kPieceRows);
    parallel_for(rows.count, threads, [&](int64_t piece) {
      const int64_t begin = rows.begin(piece);
      multiply<T>(Strided<T>{d_scores + begin, 1, num_prototypes}, b.across(0), b.across_stride(),
                  rows.end(piece) - begin, dim, num_samples, d_prototypes + begin * dim, dim,
                  false);
    });
  }
}

template <typename T>
void add(Kernels<T>& table) {
  table.prototype_scores = scores<T>;
  table.prototype_scores_gradients = gradients<T>;
}

}  // namespace

void add_prototype_scores(Kernels<float>& single, Kernels<double>& twice) {
  add(single);
  add(twice);
}

}  // namespace swav::cpu::SWAV_ISA
