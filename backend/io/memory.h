// Shared memory of the kind that the RAM tier serves from: a private tmpfs with huge pages where
// that is allowed, else a memfd. Registers as fixed buffers, unlike a mapped disk file.
//
// Not thread-safe but for the bytes themselves.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "backend/base/error.h"

namespace nexus::io {

class SharedMemory {
 public:
  // Whole pages, all of them there already (zeros). kLimit when the system has not that much.
  static Result<SharedMemory> make(size_t bytes);
  ~SharedMemory();
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&&) = delete;

  std::span<std::byte> bytes() const { return {data_, size_}; }
  bool huge() const { return huge_; }

 private:
  SharedMemory(std::byte* data, size_t size, bool huge) : data_(data), size_(size), huge_(huge) {}
  std::byte* data_;
  size_t size_;
  bool huge_;
};

}  // namespace nexus::io
