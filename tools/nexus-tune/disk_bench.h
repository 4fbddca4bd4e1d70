// Runs configurations against a test file, through the engine that the mount uses.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "backend/base/error.h"
#include "backend/io/memory.h"
#include "backend/store/disk_io.h"
#include "tools/nexus-tune/sweep.h"
#include "tools/nexus-tune/zone.h"

namespace nexus::tune {

struct BenchOptions {
  uint64_t bytes = 0;  // of the test file
  // Where that is, overwritten and kept; empty: without a name, so that nothing stays behind
  // whatever happens.
  std::string scratch = {};
  double seconds_max = 0;  // when writing it takes longer it is shorter; 0: no limit
  const std::atomic<bool>* stop = nullptr;
  std::function<void(uint64_t bytes)> on_written = {};  // so far
};

class DiskBench {
 public:
  // Writes the test file, unless the zone is read-only. kCancelled when `stop` came meanwhile.
  static Result<DiskBench> make(const Zone& zone, const BenchOptions& options);

  // Reads or overwrites `bytes` of the file, from where the last run ended, cold. A write's time
  // ends when the bytes are durable.
  Result<Sample> run(Direction direction, const io::EngineSettings& settings, uint64_t bytes);

  // Why the page cache could not be dropped before a run ("" when it could): buffered reads of this
  // sweep may have been served from memory.
  const std::string& drop_reason() const { return drop_reason_; }
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  DiskBench(UniqueFd file, uint64_t file_bytes, io::SharedMemory memory)
      : file_(std::move(file)), file_bytes_(file_bytes), memory_(std::move(memory)) {}
  void make_cold();

  UniqueFd file_;
  uint64_t file_bytes_;
  io::SharedMemory memory_;
  uint64_t next_ = 0;
  std::string drop_reason_;
};

// CPU seconds of this process so far, user and system.
double cpu_seconds();
// Drops the page cache of the system; "" or why that was refused.
std::string drop_page_cache();
// A test's or a load's memory: no more than a quarter of what is available now.
uint64_t memory_budget();

}  // namespace nexus::tune
