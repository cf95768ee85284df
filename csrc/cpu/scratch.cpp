#include "scratch.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace swav::cpu {

#ifdef SWAV_SANITIZE

// A block for each use, of exactly its size: in a kept one no sanitizer sees a step too far, nor
// the use of what the block held before
Scratch::Scratch(size_t bytes) : size_(bytes) {
  if (posix_memalign(&data_, 64, bytes) != 0) throw std::bad_alloc();
}

Scratch::~Scratch() { std::free(data_); }

#else

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMostKept = size_t(24) << 20;  // bytes a thread keeps

struct Block {
  void* data;
  size_t size;
};

struct Cache {
  std::vector<Block> blocks;
  size_t bytes = 0;
  ~Cache() {
    for (const Block& block : blocks) std::free(block.data);
  }
};

thread_local Cache cache;

}  // namespace

Scratch::Scratch(size_t bytes) {
  size_ = std::max(bytes + kAlignment - 1, kAlignment) / kAlignment * kAlignment;
  std::vector<Block>& blocks = cache.blocks;
  // the smallest block that fits, unless it would waste most of itself
  auto best = blocks.end();
  for (auto block = blocks.begin(); block != blocks.end(); ++block)
    if (block->size >= size_ && block->size / 4 <= size_ &&
        (best == blocks.end() || block->size < best->size))
      best = block;
  if (best != blocks.end()) {
    data_ = best->data;
    size_ = best->size;
    cache.bytes -= size_;
    blocks.erase(best);
    return;
  }
  // the largest one that was outgrown makes room
  auto outgrown = blocks.end();
  for (auto block = blocks.begin(); block != blocks.end(); ++block)
    if (block->size < size_ && (outgrown == blocks.end() || block->size > outgrown->size))
      outgrown = block;
  if (outgrown != blocks.end()) {
    std::free(outgrown->data);
    cache.bytes -= outgrown->size;
    blocks.erase(outgrown);
  }
  data_ = std::aligned_alloc(kAlignment, size_);
  if (data_ == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() {
  if (size_ > kMostKept) {
    std::free(data_);
    return;
  }
  std::vector<Block>& blocks = cache.blocks;
  blocks.push_back({data_, size_});
  cache.bytes += size_;
  while (cache.bytes > kMostKept) {  // the oldest go first
    std::free(blocks.front().data);
    cache.bytes -= blocks.front().size;
    blocks.erase(blocks.begin());
  }
}

#endif

}  // namespace swav::cpu
