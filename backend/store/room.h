// Room on a file system for bytes that are about to be written, so that all writers together leave
// its reserve of 5 % alone.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "backend/base/error.h"

namespace nexus {

// Held while the bytes are written or allocated; from then on the file system counts them itself.
class Room {
 public:
  // For `bytes` more on the disk that holds `path`. kNoSpace when they, and what other holders of
  // room on that disk are going to write, would leave less than the reserve. Blocks for as long as
  // the disk likes (HangGuard).
  static Result<Room> reserve(const std::string& path, uint64_t bytes);

  Room() = default;
  ~Room();
  Room(Room&& other) noexcept
      : reserved_(std::move(other.reserved_)), bytes_(std::exchange(other.bytes_, 0)) {}
  Room& operator=(Room&& other) noexcept {
    std::swap(reserved_, other.reserved_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

 private:
  Room(std::shared_ptr<std::atomic<uint64_t>> reserved, uint64_t bytes)
      : reserved_(std::move(reserved)), bytes_(bytes) {}

  std::shared_ptr<std::atomic<uint64_t>> reserved_;  // on this disk, by everybody
  uint64_t bytes_ = 0;
};

}  // namespace nexus
