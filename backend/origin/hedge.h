// A read of one range that does not wait for a connection that has gone quiet: when a request brings nothing for
// longer than this origin's requests usually do, a second one asks for the rest, and the first to bring a byte goes on.
// The other is cancelled, so that each byte is delivered once.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/origin/origin.h"

namespace nexus {

class FileSource;

// How long a request may bring nothing before it counts as stalled. Thread-safe.
class StallLimit {
 public:
  using Duration = std::chrono::milliseconds;
  struct Bounds {
    Duration least{2000};     // a loaded machine may be quiet for that long
    Duration most{15000};     // well below HttpOptions::stall_time, which ends the request
    Duration unknown{5000};   // until enough was seen
  };
  StallLimit() : StallLimit(Bounds()) {}
  explicit StallLimit(Bounds bounds);

  // The longest quiet time of a request that ended well, its first byte included.
  void note(Duration longest_quiet);
  // Four times the 99th percentile of the last requests, within the bounds.
  Duration limit() const;

 private:
  static constexpr size_t kSamplesMax = 128;
  static constexpr size_t kSamplesMin = 16;

  const Bounds bounds_;
  mutable std::mutex mutex_;  // guards the two below
  std::vector<Duration> samples_;
  size_t next_ = 0;
};

// As read_range() (range_reader.h), hedged.
std::shared_ptr<Transfer> read_hedged(std::shared_ptr<FileSource> source, ReadRequest request);

}  // namespace nexus
