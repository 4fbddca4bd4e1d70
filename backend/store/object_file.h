// The bytes of one cached object on disk: a file of exactly its final size, which chunks are
// present, and a hash of each.
//
// Thread safety: read() and the bitmap may be used from any thread at any time. write() may be
// called concurrently for ranges that do not overlap. A file that is removed from the store stays
// readable through existing shared_ptrs (the inode lives on), so a reader never sees another
// object's bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/store/hang_guard.h"

namespace nexus {

class Room;
class Zone;

inline constexpr uint64_t kChunkBytes = 1 << 20;

// An open file, closed with its last owner.
class Descriptor {
 public:
  explicit Descriptor(int fd);
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  // How many there are in this process.
  static int count();

 private:
  const int fd_;
};

class ObjectFile {
 public:
  // `fd` < 0: opened at first use, so that 100,000 restored objects cost no descriptors at start.
  // `accounting` may be null (tests); it counts wear, use and errors.
  ObjectFile(std::string key, std::string path, int zone, int fd, uint64_t size,
             std::shared_ptr<Zone> accounting = nullptr);
  ~ObjectFile();  // closes the descriptor
  ObjectFile(const ObjectFile&) = delete;
  ObjectFile& operator=(const ObjectFile&) = delete;

  const std::string& key() const { return key_; }
  const std::string& path() const { return path_; }
  int zone() const { return zone_; }
  // Open read-write, at least as long as the returned pointer lives. Prefer it to fd(): descriptors
  // that nobody holds are closed when there are many, and opened again at the next use. kCorrupt
  // when the file has another size than the object, kDisk.
  Result<std::shared_ptr<const Descriptor>> descriptor() const;
  // The same, lent for good: this object then keeps its one descriptor until its end. -1 when it
  // cannot be opened.
  int fd() const;
  uint64_t size() const { return size_; }
  uint64_t chunks() const { return chunks_; }
  uint64_t chunk_length(uint64_t chunk) const;

  bool has(uint64_t chunk) const;
  // All chunks that [range) touches are present. An empty range is.
  bool has(ByteRange range) const;
  bool complete() const { return present_count_.load(std::memory_order_acquire) == chunks_; }
  uint64_t present_chunks() const { return present_count_.load(std::memory_order_acquire); }
  uint64_t present_bytes() const;

  // kInvalid outside the file, kNoSpace, kDisk. A zone's file takes a copy of the bytes, since a
  // disk that hangs holds on to them.
  Result<void> write(uint64_t offset, std::span<const std::byte> bytes);
  // The same without a copy: after an error the caller leaves these bytes alone for good.
  Result<void> write(uint64_t offset, const std::shared_ptr<std::byte[]>& bytes, uint64_t length);
  // The same where `by` moves all of the bytes to the open file, as io/engine.h does.
  using WriteBy = std::function<Result<void>(int fd, uint64_t offset, std::span<const std::byte>)>;
  Result<void> write_by(uint64_t offset, std::span<const std::byte> bytes, const WriteBy& by);
  // Reads exactly `into.size()` bytes; kDisk on an I/O error. Does not look at the bitmap.
  Result<void> read(uint64_t offset, std::span<std::byte> into) const;

  // Hashes the chunk's bytes from the file (they are in the page cache), then marks it present.
  Result<void> seal_chunk(uint64_t chunk);
  // The same when the caller has just read the whole chunk back from the file.
  void seal_chunk(uint64_t chunk, std::span<const std::byte> bytes);
  // Re-reads a chunk and compares it with its hash; kCorrupt names object, chunk and both hashes.
  Result<void> verify_chunk(uint64_t chunk) const;
  uint64_t chunk_hash(uint64_t chunk) const {
    return hashes_[chunk].load(std::memory_order_relaxed);
  }

  // True once the disk refused to keep bytes that were written (a failed sync): what the page cache
  // still shows may be lost at any moment, so read() and write() answer kDisk. Remove the object.
  bool failed() const { return failed_.load(std::memory_order_acquire); }

  // Its zone has lately given errors (Zone::healthy), or its disk hangs.
  bool unwell() const;
  // For who reads its descriptor by other means and got an I/O error.
  void note_io_error() const;
  // Its disk does not answer: read() and write() say kDisk at once (HangGuard).
  bool hung() const;
  // Runs a call on its disk where that may hang: what it returned, or nothing when the disk hangs;
  // the call, which owns all it touches, may then still return at any later time.
  template <typename Call>
  auto guarded(Call call) const -> std::optional<std::invoke_result_t<Call&>> {
    if (HangGuard* disk = guard()) return disk->get(std::move(call));
    return call();
  }
  tl::unexpected<Error> hang_error(const char* what) const;  // of such a call

  // --- For the store alone ---

  // Before anyone else sees the object.
  void restore(const std::vector<uint64_t>& bitmap, const std::vector<uint64_t>& hashes);
  std::vector<uint64_t> bitmap() const;
  std::vector<uint64_t> hashes() const;
  // The object still means to write this much (zone choice, see zones.h). `preallocated`: its
  // blocks are its own already, so a write need not ask for room.
  void promise(uint64_t bytes, bool preallocated);
  // Pushes what was written to the disk. A failure is final, see failed().
  Result<void> sync();
  // Closes the descriptor, unless it was lent or, the first time, used since the last call.
  void close_idle();
  // No longer part of the cache: not charged to its zone any more, never persisted again.
  void retire();
  bool retired() const { return retired_.load(std::memory_order_seq_cst); }

 private:
  void mark_present(uint64_t chunk, uint64_t hash);
  // The open file for a write of so much there.
  Result<std::shared_ptr<const Descriptor>> writable(uint64_t offset, uint64_t bytes);
  Result<Room> reserve_room(uint64_t bytes) const;
  Result<void> write_kept(uint64_t offset, std::span<const std::byte> bytes,
                          const std::shared_ptr<const std::byte[]>& owner);
  Result<uint64_t> hash_chunk(uint64_t chunk) const;
  HangGuard* guard() const;  // null: its disk does not hang
  void charge(uint64_t bytes);
  tl::unexpected<Error> io_error(int err, const char* what) const;

  const std::string key_, path_;
  const int zone_;
  const uint64_t size_, chunks_;
  const std::shared_ptr<Zone> accounting_;
  std::vector<std::atomic<uint64_t>> present_;  // bit n % 64 of word n / 64: chunk n
  std::vector<std::atomic<uint64_t>> hashes_;   // XXH3-64 of each present chunk
  std::atomic<uint64_t> present_count_{0};
  std::atomic<bool> failed_{false}, retired_{false};
  bool preallocated_ = false;  // set once, before the object is shared

  mutable std::mutex fd_mutex_;  // guards the three below; held to copy a pointer, or to open
  mutable std::shared_ptr<const Descriptor> descriptor_;
  mutable bool lent_ = false, used_ = false;

  std::mutex charge_mutex_;  // guards the two below; taken once a chunk
  uint64_t charged_bytes_ = 0, promised_bytes_ = 0;
};

}  // namespace nexus
