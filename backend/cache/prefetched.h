// What read-ahead brought into one object and nobody has read yet, for the prefetcher's books.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "backend/base/byte_range.h"

namespace nexus {

// Thread-safe. Pieces are as large as they were fetched (a layer): the first read of a piece makes
// all of it read.
class Prefetched {
 public:
  // Bytes of [range) that were asked of the origin; the rest of it was here.
  void add(ByteRange range, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    pieces_.push_back({range, bytes});
    any_.store(true, std::memory_order_relaxed);
  }
  bool any() const { return any_.load(std::memory_order_relaxed); }
  // Forgets the pieces that [range) touches, and returns their bytes.
  uint64_t take(ByteRange range) {
    if (!any()) return 0;
    std::lock_guard lock(mutex_);
    uint64_t bytes = 0;
    std::erase_if(pieces_, [&](const Piece& piece) {
      if (piece.range.offset >= range.end() || range.offset >= piece.range.end()) return false;
      bytes += piece.bytes;
      return true;
    });
    any_.store(!pieces_.empty(), std::memory_order_relaxed);
    return bytes;
  }
  // The piece that add() was told of, unless it was read. Returns its bytes.
  uint64_t remove(ByteRange range) {
    std::lock_guard lock(mutex_);
    for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
      if (piece->range.offset != range.offset || piece->range.length != range.length) continue;
      const uint64_t bytes = piece->bytes;
      pieces_.erase(piece);
      any_.store(!pieces_.empty(), std::memory_order_relaxed);
      return bytes;
    }
    return 0;
  }

 private:
  struct Piece {
    ByteRange range;
    uint64_t bytes = 0;
  };
  std::mutex mutex_;  // guards pieces_
  std::vector<Piece> pieces_;
  std::atomic<bool> any_{false};
};

}  // namespace nexus
