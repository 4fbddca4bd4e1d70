// The inside of the engine: ring threads that share the calls of one direction. See engine.h.
#pragma once

#include <liburing.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/base/error.h"
#include "backend/io/engine.h"
#include "backend/store/disk_io.h"

namespace nexus::io {

// One call's aligned part. Lives on its caller's stack until it is done.
struct Call {
  bool write = false;
  int fd = -1;
  int buffered_fd = -1;  // takes over what O_DIRECT refuses; fd itself when that is buffered
  uint64_t offset = 0;
  std::byte* data = nullptr;
  size_t length = 0;

  // Lane's mutex guards what follows.
  size_t taken = 0;  // bytes handed out
  int in_flight = 0;
  bool done = false;
  int error = 0;  // errno of the first block that failed
  uint64_t error_offset = 0;
  bool ended = false;  // the file ended before the read did
  bool direct_refused = false;
  std::condition_variable finished;
};

struct Block {
  Call* call = nullptr;
  uint64_t offset = 0;
  std::byte* data = nullptr;
  uint32_t length = 0;
};

class RingThread;

class Lane {
 public:
  // Null with a reason when the first ring cannot be made.
  static std::unique_ptr<Lane> start(const EngineSettings& settings, const EngineOptions& options,
                                     std::string* reason);
  ~Lane();

  // Blocks until every block of it ended.
  void run(Call& call);

  Result<void> register_memory(std::span<std::byte> memory);
  void unregister_memory(const std::byte* start, size_t length);
  Measured measured() const;
  uint64_t fixed_requests() const { return fixed_requests_; }
  const EngineSettings& settings() const { return settings_; }
  const std::string& ring_reason() const { return ring_reason_; }

  // --- for ring threads ---
  bool take(Block& block);
  void finish(const Block& block, int error, bool ended, bool direct_refused);
  bool stopping() const;
  void count_fixed() { fixed_requests_.fetch_add(1, std::memory_order_relaxed); }

 private:
  explicit Lane(const EngineSettings& settings) : settings_(settings) {}

  const EngineSettings settings_;
  std::string ring_reason_;
  std::vector<std::unique_ptr<RingThread>> threads_;

  mutable std::mutex mutex_;   // guards the calls' progress and the two below
  std::deque<Call*> waiting_;  // calls with blocks to hand out, the next one first
  bool stopping_ = false;

  std::mutex register_mutex_;  // one registration at a time
  std::atomic<uint64_t> fixed_requests_{0};
};

// One ring and its only user, as SINGLE_ISSUER and DEFER_TASKRUN ask.
class RingThread {
 public:
  RingThread(Lane& lane, const EngineOptions& options);
  ~RingThread();  // joins; the lane is stopping
  // Returns when the ring is there (0) or was refused (errno).
  int wait_until_started();
  const std::string& polling_reason() const { return polling_reason_; }

  void wake();
  // Runs on the thread itself, the caller waits. 0 or errno.
  int register_piece(std::span<std::byte> piece);
  void unregister_from(const std::byte* start, size_t length);
  const Measured& measured() const { return measured_; }

 private:
  struct Slot {
    Block block;
    int fd = -1;
    uint64_t submitted_ns = 0;
    unsigned tries = 0;
  };
  struct Command {
    bool add = false;
    std::span<std::byte> piece;
    int result = 0;
    bool done = false;
  };
  struct Piece {
    std::byte* start = nullptr;
    size_t length = 0;
  };

  void run();
  int make_ring();
  int check_ring();
  void work();
  void fill();
  void queue(unsigned slot);
  void arm_wake();
  void submit();
  void wait(unsigned count);
  void reap();
  void completed(unsigned slot, int result);
  void end(unsigned slot, int error, bool ended = false);
  bool synchronously(Slot& slot);
  io_uring_sqe* sqe();
  int fixed_index(const Block& block) const;
  void run_commands();
  int execute(const Command& command);
  int run_command(Command command);

  Lane& lane_;
  const EngineSettings& settings_;
  const EngineOptions options_;
  UniqueFd event_;  // woken by it

  // The ring thread's own.
  io_uring ring_{};
  bool iopoll_ = false;
  std::vector<Slot> slots_;
  std::vector<unsigned> free_;
  std::vector<unsigned> fresh_;  // queued, not yet submitted
  unsigned in_flight_ = 0;
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;
  bool table_made_ = false;
  std::vector<Piece> pieces_;  // by index of the ring's buffer table; length 0: free
  std::string polling_reason_;
  Measured measured_;  // read by others while no call is under way

  std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  bool started_ = false;
  int start_error_ = 0;
  std::list<Command*> commands_;

  std::thread thread_;
};

}  // namespace nexus::io
