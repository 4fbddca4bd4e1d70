// Moves whole ranges between files and memory over io_uring, by the settings that nexus-tune found.
// Reads and writes have settings and ring threads of their own.
//
// Where io_uring is refused (kernel, seccomp, sysctl) the caller's thread does the same with
// pread/pwrite; where O_DIRECT or fixed buffers are, they are left out. report() says so and why.
//
// Thread safety: every method may be called from any thread. read() and write() block their caller
// until the last byte moved: they are for pool threads, never for a FUSE worker or a loop executor.
// Calls under way share the ring threads block by block, so a small one does not wait for a large
// one to end. No call may be under way when the engine is destroyed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "backend/base/error.h"
#include "backend/io/histogram.h"
#include "backend/io/settings.h"

struct io_uring;
struct io_uring_params;

namespace nexus::io {

class Lane;

// The least that read_pinned() and write_pinned() register memory for: for less, the two turns of
// each ring thread cost more than they save.
inline constexpr size_t kPinBytesMin = 2 << 20;

struct EngineOptions {
  bool measure = false;  // keep latencies, see measured()
  // Makes a ring, as io_uring_queue_init_params() does; tests refuse here. Null: that function.
  int (*queue_init)(unsigned entries, io_uring* ring, io_uring_params* params) = nullptr;
};

struct EngineReport {
  bool io_uring = false;
  std::string reason;  // why not; "" when it is used
  // Calls whose aligned part went by O_DIRECT, and those that wanted to and could not.
  uint64_t direct_calls = 0, buffered_calls = 0;
  std::string direct_reason;  // of the last one that could not
  uint64_t registered_bytes = 0;
  std::string registered_reason;  // why memory was last refused to be registered
  uint64_t pinned_calls = 0;      // of read_pinned() and write_pinned(), those that were
  uint64_t fixed_requests = 0;    // requests that went by a fixed buffer
  std::string ring_reason;        // why a thread polls neither device nor submissions as asked
};

// Latencies of all blocks so far. Submit: one system call; complete: from there to the completion.
struct Measured {
  Histogram submit, complete;
};

class Engine {
 public:
  Engine(EngineSettings read, EngineSettings write, EngineOptions options = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Exactly into.size() bytes from `offset`; kDisk names offset and cause, also when the file ends
  // before. `fd` is open for reading, without O_DIRECT. For O_DIRECT, `offset` and the memory start
  // on 4096 (and the file can be opened anew); a tail that is no multiple of that is read buffered.
  Result<void> read(int fd, uint64_t offset, std::span<std::byte> into);
  // The same for writing; kNoSpace on a full disk. Durable after the caller's fdatasync().
  Result<void> write(int fd, uint64_t offset, std::span<const std::byte> from);

  // Pins memory for fixed-buffer requests: MAP_SHARED of tmpfs or memfd, or anonymous; pages of a
  // file on disk cannot be. An error is only a reason to go on without: kUnsupported, kLimit.
  // Start and size are multiples of 4096; unregister (the same start) before the memory goes.
  Result<void> register_memory(std::span<std::byte> memory);
  void unregister_memory(const std::byte* start);

  // read() and write() for memory that comes and goes, such as a copy in the RAM tier: where the
  // settings want fixed buffers it is registered for this call alone, so nothing of it is pinned
  // when the call returns. A call that is too small to be worth it (kPinBytesMin), or whose memory
  // is refused, goes without; a refusal (RLIMIT_MEMLOCK) is not asked for again. Not for memory
  // that register_memory() has.
  Result<void> read_pinned(int fd, uint64_t offset, std::span<std::byte> into);
  Result<void> write_pinned(int fd, uint64_t offset, std::span<const std::byte> from);

  const EngineSettings& read_settings() const { return read_settings_; }
  const EngineSettings& write_settings() const { return write_settings_; }
  EngineReport report() const;
  // With EngineOptions::measure, of reads or of writes; while no call is under way.
  Measured measured(bool write) const;

 private:
  Result<void> run(Lane* lane, bool write, int fd, uint64_t offset, std::byte* data, size_t length);
  Result<void> run_pinned(Lane* lane, bool write, int fd, uint64_t offset,
                          std::span<std::byte> memory);
  bool pin(Lane& lane, std::span<std::byte> memory);

  const EngineSettings read_settings_, write_settings_;
  std::unique_ptr<Lane> read_lane_, write_lane_;  // null without io_uring
  std::atomic<bool> pin_refused_{false};

  mutable std::mutex mutex_;  // guards report_, registered_
  EngineReport report_;
  std::map<const std::byte*, size_t> registered_;
};

}  // namespace nexus::io
