// How blocks travel between a disk and memory: what nexus-tune finds and the engine uses.
#pragma once

#include <cstdint>

namespace nexus::io {

struct EngineSettings {
  uint64_t block_size = 1 << 20;  // bytes of one request; a multiple of 4096
  unsigned queue_depth = 16;      // requests in flight, a thread
  unsigned threads = 1;           // each with a ring of its own
  bool overlap = true;            // keep the queue full; false: submit a queue, wait for all of it
  bool single_submit = false;     // a system call for each request rather than for a batch
  bool direct = true;             // O_DIRECT where alignment and file system allow
  bool registered = false;        // fixed buffers, see Engine::register_memory(), read_pinned()
  bool iopoll = false;  // poll the device for completions; needs direct and its poll queues
  bool sqpoll = false;  // a kernel thread takes submissions without a system call
  bool operator==(const EngineSettings&) const = default;
};

inline constexpr uint64_t kDirectAlign = 4096;
inline constexpr uint64_t kBlockMin = 4096, kBlockMax = 64 << 20;
inline constexpr unsigned kDepthMax = 1024, kThreadsMax = 64;

// The same, with what is out of bounds brought to the nearest value that is not.
EngineSettings clamped(EngineSettings settings);

}  // namespace nexus::io
