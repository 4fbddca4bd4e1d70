// Memory that O_DIRECT can read into: it starts on a page.
#pragma once

#include <cstddef>
#include <new>
#include <span>

namespace nexus {

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new(bytes, kPage))), size_(bytes) {}
  ~AlignedBuffer() { ::operator delete(data_, kPage); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  static constexpr std::align_val_t kPage{4096};
  std::byte* const data_;
  const size_t size_;
};

}  // namespace nexus
