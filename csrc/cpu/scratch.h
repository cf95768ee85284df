// Working memory that a thread keeps between calls: fresh pages cost more than a Sinkhorn sweep.
#pragma once

#include <cstddef>

namespace swav::cpu {

// Aligned to 64 bytes, uninitialised. From the calling thread's cache, and back to it at the end.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  size_t size_;
};

}  // namespace swav::cpu
