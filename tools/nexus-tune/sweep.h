// Which configurations are measured, in what order, and how the winner is found. Knows nothing of
// disks: `measure` does the work, so that tests put a model of a disk there.
//
// Not thread-safe; `stop` may be set by a signal handler.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "tools/nexus-tune/point.h"

namespace nexus::tune {

// What this machine and this file system can do; a sweep leaves the rest out.
struct Features {
  bool io_uring = true, direct = true, registered = true, iopoll = false, sqpoll = true;
};

struct SweepOptions {
  bool full = false;
  uint64_t bytes = 512 << 20;  // of the test file; a run of --full moves all of it
  int runs = 3;                // of each configuration (full) or finalist (quick)
  double seconds = 22;         // quick: what one direction is planned for; no run begins 10 % later
  Features features;
};

struct SweepResult {
  std::vector<Point> points;
  int winner = -1;           // index of points; -1: nothing could be measured
  bool interrupted = false;  // before its end, by `stop`
};

// Moves about `bytes` bytes; an error is of this configuration alone.
using Measure = std::function<Result<Sample>(const io::EngineSettings&, uint64_t bytes)>;
// Called after each run: how many are done and how many there will be, as far as is known.
using OnProgress = std::function<void(int done, int total)>;

SweepResult sweep(const SweepOptions& options, const Measure& measure, const OnProgress& progress,
                  const std::atomic<bool>& stop);

// The parts, for tests.
// 100 to 300 configurations where the kernel has io_uring; no more in flight than half of `bytes`.
std::vector<io::EngineSettings> full_configurations(const Features& features, uint64_t bytes);
// A few, spread over the space.
std::vector<io::EngineSettings> coarse_configurations(const Features& features, uint64_t bytes);
// One step away in block size, depth or threads.
std::vector<io::EngineSettings> neighbours(const io::EngineSettings& of, uint64_t bytes);

}  // namespace nexus::tune
