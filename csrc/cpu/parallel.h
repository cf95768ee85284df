// Tasks over threads. What a task computes depends on its number alone, never on the thread, so
// results have the same bits with any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#ifndef _OPENMP
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace swav::cpu::SWAV_ISA {
namespace {

// body(task) for each task in [0, num_tasks), in no order
template <typename Body>
inline void parallel_for(int64_t num_tasks, int threads, const Body& body) {
  const int workers = int(std::min<int64_t>(threads, num_tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(workers) schedule(dynamic, 1)
  for (int64_t task = 0; task < num_tasks; ++task) body(task);
#else
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t task; (task = next.fetch_add(1)) < num_tasks;) body(task);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
#endif
}

// A range cut into equal pieces of a multiple of `unit`, the last one shorter
struct Pieces {
  int64_t total, size, count;

  Pieces(int64_t total, int64_t most_pieces, int64_t unit) : total(total) {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t pieces = std::max<int64_t>(1, std::min(units, most_pieces));
    size = std::max<int64_t>(1, (units + pieces - 1) / pieces) * unit;
    count = (total + size - 1) / size;
  }
  int64_t begin(int64_t piece) const { return piece * size; }
  int64_t end(int64_t piece) const { return std::min(total, begin(piece) + size); }
};

}  // namespace
}  // namespace swav::cpu::SWAV_ISA
