// Tasks over threads. What a task computes depends on its number alone, never on the thread, so
// results have the same bits with any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif

namespace swav::cpu::SWAV_ISA {
namespace {

// work(worker) for each of several workers, one a thread; fewer may come, in a nested region
template <typename Work>
inline void on_threads(int workers, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(workers)
  work(omp_get_thread_num());
#else
  std::vector<std::thread> others;
  for (int i = 1; i < workers; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
#endif
}

// The next number. It orders no memory: tasks share none, and the threads' end orders the rest
inline int64_t take(std::atomic<int64_t>& next) {
  return next.fetch_add(1, std::memory_order_relaxed);
}

// body(task) for each task in [0, num_tasks), in no order
template <typename Body>
inline void parallel_for(int64_t num_tasks, int threads, const Body& body) {
  const int workers = int(std::min<int64_t>(threads, num_tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next{0};
  on_threads(workers, [&](int) {
    for (int64_t task; (task = take(next)) < num_tasks;) body(task);
  });
}

// The same where a task reads what it wrote in the call before: a thread has its own range of
// tasks, whose memory its cache holds, and takes those of others only when it has no more.
// Backwards it begins with what the call before left there last.
template <typename Body>
inline void parallel_for_again(int64_t num_tasks, int threads, bool backwards, const Body& body) {
  constexpr int kMostWorkers = 64;
  const int workers = int(std::min<int64_t>({threads, num_tasks, kMostWorkers}));
  if (workers <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(backwards ? num_tasks - 1 - task : task);
    return;
  }
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  };
  Count taken[kMostWorkers];
  on_threads(workers, [&](int worker) {
    for (int i = 0; i < workers; ++i) {
      const int64_t owner = (worker + i) % workers;
      const int64_t begin = owner * num_tasks / workers, end = (owner + 1) * num_tasks / workers;
      for (int64_t n; (n = take(taken[owner].value)) < end - begin;)
        body(backwards ? end - 1 - n : begin + n);
    }
  });
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
