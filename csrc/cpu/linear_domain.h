// Sinkhorn in the linear domain: u = N / K / sum_b a_b E, a = 1 / sum_k u_k E with E = 2^t.
//
// Only for problems whose |t| = |s| / epsilon * log2(e) is bounded: then neither E nor any sum of
// it can overflow or vanish, and no maximum is needed. The first sweep finds the bound out as it
// goes. E is kept from sweep to sweep where there is memory for it, else computed again.
#pragma once

#include "kept.h"
#include "parallel.h"
#include "potentials.h"
#include "row_groups.h"

namespace swav::cpu::SWAV_ISA {
namespace {

constexpr int64_t kThreadNumbers = int64_t(1) << 16;  // scores that are worth a further thread
constexpr double kLargestExponent = 40;               // cosines reach 29 at epsilon = 0.05

template <typename T, typename Store>
class Linear {
 public:
  using Element = typename Store::Element;
  static constexpr int kVectors = Store::kVectors;

  // e [num_kept, Store::stride(K)] holds E of the first rows between the sweeps, and may be the
  // scores themselves; that of other rows is computed again in each. num_kept is all rows or a
  // multiple of kSlotRows.
  Linear(Scores scores, int64_t first, Element* e, int64_t num_kept, int64_t num_samples,
         int64_t num_prototypes, T scale, int threads)
      : scores_(scores),
        first_(first),
        e_(e),
        num_kept_(num_kept),
        num_samples_(num_samples),
        num_prototypes_(num_prototypes),
        stride_(round_up(num_prototypes, kVectors * kLanes<T>)),
        e_stride_(Store::stride(num_prototypes)),
        scale_(scale),
        threads_(
            int(std::min<int64_t>(threads, 1 + num_samples * num_prototypes / kThreadNumbers))),
        slots_(num_samples, kMostSlots, kSlotRows),
        u_(stride_ * sizeof(T)),
        sums_(slots_.count * stride_ * sizeof(T)),
        largest_(slots_.count * sizeof(Ints<T>)) {}

  // Whether the scores are in range, without touching e
  bool in_range() {
    over_slots([&](int64_t slot, T*) {
      Scratch row_buffer(stride_ * sizeof(T));
      Ints<T> largest{};
      for (int64_t b = slots_.begin(slot); b < slots_.end(slot); ++b) {
        const T* row = read_row(b, row_buffer.as<T>());
        over_vectors<T>(num_prototypes_, [&](int64_t k, auto width) {
          largest = larger_magnitude(get(row + k, width, T(0)), largest);
        });
      }
      largest_.as<Ints<T>>()[slot] = largest;
    });
    return largest_is_in_range();
  }

  // First sweep: u from a = 1; false if the scores are out of range, and e is then undefined
  bool first_sweep() {
    over_slots([&](int64_t slot, T* sums) {
      Scratch row_buffer(kGroupRows * stride_ * sizeof(T));
      Ints<T> largest{};
      over_row_blocks(slot, sums, [&](auto group, int64_t b, T* block_sums) {
        const T* rows[kGroupRows];
        for (int i = 0; i < group; ++i) rows[i] = read_row(b + i, row_buffer.as<T>() + i * stride_);
        const bool keeps = b < num_kept_;
        over_vectors<T, kVectors>(num_prototypes_, [&](int64_t k, auto width) {
          Vec<T> x[decltype(group)::value][kVectors];
          for (int j = 0; j < kVectors; ++j) {
            const int64_t at = k + j * kLanes<T>;
            Vec<T> sum = load(block_sums + at);
            for (int i = 0; i < group; ++i) {
              prefetch_next_group(rows[i] + at);
              const Vec<T> score = get(rows[i] + at, vector_of<T>(width, j), T(0));
              largest = larger_magnitude(score, largest);
              x[i][j] = exp2_product(score, scale_);
              sum += x[i][j];
            }
            store(block_sums + at, sum);
          }
          if (keeps)
            for (int i = 0; i < group; ++i) Store::put(e_ + (b + i) * e_stride_ + k, x[i], width);
        });
      });
      largest_.as<Ints<T>>()[slot] = largest;
    });
    if (!largest_is_in_range()) return false;
    combine();
    return true;
  }

  // Later sweeps: a from u, then u from a
  void later_sweep() {
    over_slots([&](int64_t slot, T* sums) {
      Scratch buffer(kGroupRows * stride_ * sizeof(Element));
      over_row_blocks(slot, sums, [&](auto group, int64_t b, T* block_sums) {
        Element* rows[kGroupRows];
        T a[kGroupRows];
        const bool is_kept = b < num_kept_;
        for (int i = 0; i < group; ++i)
          rows[i] = is_kept ? e_ + (b + i) * e_stride_ : buffer.as<Element>() + i * stride_;
        if (is_kept)
          inverse_sums<group>(rows, a);
        else
          compute_inverse_sums<group>(b, rows, a);
        over_vectors<T, kVectors>(num_prototypes_, [&](int64_t k, auto width) {
          Vec<T> sum[kVectors], x[kVectors];
          for (int j = 0; j < kVectors; ++j) sum[j] = load(block_sums + k + j * kLanes<T>);
          for (int i = 0; i < group; ++i) {
            Store::get(rows[i] + k, width, x);
            for (int j = 0; j < kVectors; ++j) sum[j] += x[j] * a[i];
          }
          for (int j = 0; j < kVectors; ++j) store(block_sums + k + j * kLanes<T>, sum[j]);
        });
      });
    });
    combine();
  }

  // Last sweep: codes a u E in the place of E, which is kept of all rows
  void codes() {
    const T* u = u_.as<T>();
    over_slots([&](int64_t slot, T*) {
      in_groups(slots_.begin(slot), slots_.end(slot), [&](auto group, int64_t b) {
        Element* rows[kGroupRows];
        T a[kGroupRows];
        for (int i = 0; i < group; ++i) rows[i] = e_ + (b + i) * e_stride_;
        inverse_sums<group>(rows, a);
        over_vectors<T>(num_prototypes_, [&](int64_t k, auto width) {
          const Vec<T> factor = load(u + k);
          for (int i = 0; i < group; ++i) {
            Vec<T> x[1];
            Store::get(rows[i] + k, width, x);
            x[0] *= factor * a[i];
            Store::put(rows[i] + k, x, width);
          }
        });
      });
    });
  }

  // f = log u, natural
  void potentials(T* f) const {
    over_vectors<T>(num_prototypes_, [&](int64_t k, auto width) {
      put(f + k, log2<T>(load(u_.as<T>() + k)) * T(kLn2), width);
    });
  }

 private:
  // As bit patterns, among which NaN is the largest
  static Ints<T> larger_magnitude(Vec<T> x, Ints<T> best) {
    Ints<T> bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= std::numeric_limits<typename VecTypes<T>::Integer>::max();
    return bits > best ? bits : best;
  }

  bool largest_is_in_range() const {
    bool in_range = true;
    for (int64_t slot = 0; slot < slots_.count; ++slot) {
      Vec<T> largest;
      std::memcpy(&largest, largest_.as<Ints<T>>() + slot, sizeof largest);
      for (int i = 0; i < kLanes<T>; ++i)
        in_range = in_range && largest[i] * scale_ <= T(kLargestExponent);
    }
    return in_range;
  }

  // body(slot, its column sums); every other sweep goes backwards, to find in the cache what the
  // one before left there
  template <typename Body>
  void over_slots(const Body& body) {
    backwards_ = !backwards_;
    parallel_for_again(slots_.count, threads_, backwards_,
                       [&](int64_t slot) { body(slot, sums_.as<T>() + slot * stride_); });
  }

  // body(group, first row, sums of a block of rows); the blocks' sums are added up in the slot's
  template <typename Body>
  void over_row_blocks(int64_t slot, T* sums, const Body& body) {
    Scratch block(stride_ * sizeof(T));
    T* block_sums = block.as<T>();
    std::fill(sums, sums + stride_, T(0));
    const int64_t begin = slots_.begin(slot), end = slots_.end(slot);
    const int64_t blocks = (end - begin + kSlotRows - 1) / kSlotRows;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = begin + (backwards_ ? blocks - 1 - i : i) * kSlotRows;
      std::fill(block_sums, block_sums + stride_, T(0));
      in_groups(row, std::min(end, row + kSlotRows),
                [&](auto group, int64_t b) { body(group, b, block_sums); });
      for (int64_t k = 0; k < stride_; ++k) sums[k] += block_sums[k];
    }
  }

  // u = N / K / the sums of all slots: with columns of 1 and rows of 1, u and a would grow apart by
  // N / K in every iteration
  void combine() {
    const T share = T(num_samples_) / T(num_prototypes_);
    const Pieces pieces(stride_, stride_, 4096);
    parallel_for(pieces.count, threads_, [&](int64_t piece) {
      for (int64_t k = pieces.begin(piece); k < pieces.end(piece); k += kLanes<T>) {
        Vec<T> sum{};
        for (int64_t slot = 0; slot < slots_.count; ++slot)
          sum += load(sums_.as<T>() + slot * stride_ + k);
        store<T>(u_.as<T>() + k, share / sum);
      }
    });
    for (int64_t k = num_prototypes_; k < stride_; ++k) u_.as<T>()[k] = T(0);
  }

  // a = 1 / sum_k u_k E of a group of rows, each step of which read(i, k, width, E) fetches
  template <int kRows, typename Read>
  void inverse_sums_of(const Read& read, T* a) const {
    const T* u = u_.as<T>();
    Vec<T> total[kRows], block[kRows];
    for (int i = 0; i < kRows; ++i) total[i] = block[i] = Vec<T>{};
    over_blocks<T, kVectors>(
        num_prototypes_,
        [&](int64_t k, auto width) {
          for (int i = 0; i < kRows; ++i) {
            Vec<T> x[kVectors];
            read(i, k, width, x);
            for (int j = 0; j < kVectors; ++j) block[i] += x[j] * load(u + k + j * kLanes<T>);
          }
        },
        [&] {
          for (int i = 0; i < kRows; ++i) {
            total[i] += block[i];
            block[i] = Vec<T>{};
          }
        });
    for (int i = 0; i < kRows; ++i) a[i] = T(1) / sum_lanes<T>(total[i]);
  }

  template <int kRows>
  void inverse_sums(const Element* const* rows, T* a) const {
    inverse_sums_of<kRows>([&](int i, int64_t k, auto width,
                               Vec<T>(&x)[kVectors]) { Store::get(rows[i] + k, width, x); },
                           a);
  }

  // The same from the scores of rows b, ...; E is left in `rows`
  template <int kRows>
  void compute_inverse_sums(int64_t b, Element* const* rows, T* a) const {
    Scratch row_buffer(kRows * stride_ * sizeof(T));
    const T* scores[kRows];
    for (int i = 0; i < kRows; ++i) scores[i] = read_row(b + i, row_buffer.as<T>() + i * stride_);
    inverse_sums_of<kRows>(
        [&](int i, int64_t k, auto width, Vec<T>(&x)[kVectors]) {
          for (int j = 0; j < kVectors; ++j) {
            const T* p = scores[i] + k + j * kLanes<T>;
            prefetch_next_group(p);
            x[j] = exp2_product(get(p, vector_of<T>(width, j), T(0)), scale_);
          }
          Store::put(rows[i] + k, x, width);
        },
        a);
  }

  // A processor does not look ahead past a page of a row by itself
  void prefetch_next_group(const T* p) const {
    __builtin_prefetch(p + kGroupRows * num_prototypes_, 0, 2);
  }

  const T* read_row(int64_t b, T* buffer) const {
    return read(scores_, first_ + b * num_prototypes_, num_prototypes_, buffer);
  }

  Scores scores_;
  int64_t first_;
  Element* e_;
  int64_t num_kept_, num_samples_, num_prototypes_, stride_, e_stride_;
  T scale_;
  int threads_;
  Pieces slots_;
  bool backwards_ = true;
  Scratch u_, sums_, largest_;
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
