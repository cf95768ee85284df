// Scores and their gradients: three matrix products, each cut over the rows of its output.
#include "operands.h"
#include "parallel.h"
#include "tables.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kPieceRows = 8 * kTileRows;
constexpr int64_t kMostPieces = 1024;

// Prototypes [size, dim] become vector lanes: [dim, kPanel], zeros beyond `size`
template <typename T>
void pack_panel(const T* prototypes, int64_t size, int64_t dim, T* packed) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t j = 0; j < kPanel<T>; j += lanes) {
    int64_t d = 0;
    for (; j + lanes <= size && d + lanes <= dim; d += lanes) {
      Vec<T> rows[lanes];
      for (int64_t i = 0; i < lanes; ++i) rows[i] = load(prototypes + (j + i) * dim + d);
      transpose<T>(rows);
      for (int64_t i = 0; i < lanes; ++i) store(packed + (d + i) * kPanel<T> + j, rows[i]);
    }
    for (; d < dim; ++d)
      for (int64_t i = j; i < j + lanes; ++i)
        packed[d * kPanel<T> + i] = i < size ? prototypes[i * dim + d] : T(0);
  }
}

template <typename T>
void scores(const T* features, const T* prototypes, T* out, int64_t num_samples,
            int64_t num_prototypes, int64_t dim, int threads) {
  const Pieces columns(num_prototypes, num_prototypes, kPanel<T>);
  parallel_for(columns.count, threads, [&](int64_t piece) {
    Scratch packed(dim * kPanel<T> * sizeof(T));
    const int64_t begin = columns.begin(piece), size = columns.end(piece) - begin;
    pack_panel(prototypes + begin * dim, size, dim, packed.as<T>());
    multiply<T>(Strided<T>{features, dim, 1}, packed.as<T>(), kPanel<T>, num_samples, size, dim,
                out + begin, num_prototypes, false);
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
      // a column of d_scores has each element on a page of its own, so blocks of it are copied
      const int64_t begin = rows.begin(piece), size = rows.end(piece) - begin;
      Scratch block(kSteps * size * sizeof(T));
      for (int64_t t = 0; t < std::max<int64_t>(1, num_samples); t += kSteps) {
        const int64_t steps = std::min(kSteps, num_samples - t);
        for (int64_t i = 0; i < steps; ++i) {
          const T* row = d_scores + (t + i) * num_prototypes + begin;
          std::copy(row, row + size, block.as<T>() + i * size);
        }
        multiply<T>(Strided<T>{block.as<T>(), 1, size}, b.across(t), b.across_stride(), size, dim,
                    steps, d_prototypes + begin * dim, dim, t > 0);
      }
    });
  }
}

template <typename T>
void add(Kernels<T>& table) {
  table.prototype_scores = scores<T>;
  table.prototype_scores_gradients = gradients<T>;
}

}  // namespace

void add_prototype_scores(Kernels<float>& single, [[maybe_unused]] Kernels<double>& twice) {
  add(single);
#ifdef SWAV_HAS_FLOAT64
  add(twice);
#endif
}

}  // namespace swav::cpu::SWAV_ISA
