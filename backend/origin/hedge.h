// A read of one range that does not wait for a connection that has gone quiet: when a request brings nothing for
// longer than this origin's requests usually do, a second one asks for the rest, and the first to bring a byte goes on.
// The other is cancelled, so that each byte is delivered once. One that trickles is cancelled when the second begins.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/origin/origin.h"

namespace nexus {

class FileSource;

// How long a request may bring nothing before it counts as stalled, and how little before it counts as trickling.
// Thread-safe.
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

  // Of a request that ended well: its longest quiet time, the first byte included, and its bytes per second on the wire;
  // 0: it was too short to say.
  void note(Duration longest_quiet, double bytes_per_s = 0);
  // Four times the 99th percentile of the last requests, within the bounds.
  Duration limit() const;
  // Bytes per second, over limit(): an eighth of what the slowest hundredth of the last requests had, at most
  // kTrickleMost. 0 until enough was seen.
  double trickle() const;
  static constexpr double kTrickleMost = 1 << 20;

 private:
  static constexpr size_t kSamplesMax = 128;
  static constexpr size_t kSamplesMin = 16;

  const Bounds bounds_;
  mutable std::mutex mutex_;  // guards all below
  std::vector<Duration> samples_;
  size_t next_ = 0;
  std::vector<double> rates_;
  size_t next_rate_ = 0;
};

// As read_range() (range_reader.h), hedged.
std::shared_ptr<Transfer> read_hedged(std::shared_ptr<FileSource> source, ReadRequest request);

}  // namespace nexus
