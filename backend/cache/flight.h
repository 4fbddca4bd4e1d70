// A run: chunks of one object on their way here. Internal to cache/.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/cache/object.h"

namespace nexus {

// Someone who waits for bytes of an object. Core thread only.
struct Waiter {
  uint64_t ticket = 0;
  ByteRange range;
  int priority = 0;
  bool digest = false;  // also wants the digest of the whole file checked (strict)
  bool trust = false;   // wants the object complete with every chunk checked (prepare)
  int attempts = 0;     // how often the fetch behind it was begun anew
  std::chrono::steady_clock::time_point since;
  std::function<void(Result<void>)> done;
};

// One contiguous piece of a transfer: [src, src + length) of the origin file goes to dest.
struct Piece {
  uint64_t src = 0, length = 0, dest = 0;
};

// Bytes reach an object's file in aligned writes of this size where they can: each becomes one
// folio of the page cache, which readers of the complete file map as one huge page. Measured
// against writes of 1 MiB: page faults of a warm mapping 3 times as fast; of 16 KiB anywhere: 25
// times, and read(2) twice.
inline constexpr uint64_t kWriteBytes = 2 << 20;

// One request to the origin: pieces ascending in src, with at most small gaps between them whose
// bytes are thrown away.
struct Part {
  uint32_t file = 0;
  ByteRange range;
  std::vector<Piece> pieces;
  // Touched by the transfer's thread alone:
  size_t next = 0;                        // first piece that is not filled
  uint64_t at = 0;                        // where the next bytes must begin
  uint64_t write_bytes = kChunkBytes;     // or kWriteBytes, where nobody waits for single chunks
  std::shared_ptr<std::byte[]> gathered;  // kWriteBytes, see Impl::land
  uint64_t gathered_at = 0, gathered_bytes = 0;
};

// Bytes of one piece that are already in another object.
struct Copy {
  std::shared_ptr<Object> from;
  std::shared_ptr<ObjectFile> file;
  uint64_t from_offset = 0, length = 0, dest = 0;
};

// Chunks [first, last) of an object's file. Made and ended on the core thread; `left` and the CRC
// pieces are counted down by the transfers' and the pool's threads.
struct Run {
  Run(std::shared_ptr<Object> object_, std::shared_ptr<ObjectFile> file_, uint64_t first_,
      uint64_t last_);

  // The CRC-32 of one chunk's share of a zip record.
  struct CrcPiece {
    uint32_t crc = 0;
    uint64_t length = 0;
  };

  const std::shared_ptr<Object> object;
  const std::shared_ptr<ObjectFile> file;
  const uint64_t first, last;
  std::vector<std::atomic<uint64_t>> left;  // bytes missing of chunk first + i
  std::atomic<uint64_t> gathered{0};   // bytes that came and wait to be written (Part::gathered)
  std::atomic<uint64_t> chunks_left;   // not yet sealed
  std::atomic<uint64_t> left_to_scan;  // archives: chunks whose CRC pieces are still to come

  std::mutex mutex;                               // guards crc_pieces, failure
  std::vector<std::vector<CrcPiece>> crc_pieces;  // [record][chunk - chunk of record.begin]
  std::optional<Error> failure;

  // Core thread only.
  int priority = 0;
  bool ended = false;
  uint64_t prefetch_bytes = 0;  // asked of the origin by a run that began as a prefetch
  std::vector<std::shared_ptr<Transfer>> transfers;
};

}  // namespace nexus
