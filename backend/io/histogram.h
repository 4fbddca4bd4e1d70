// Latencies with three significant digits, in constant memory: a log-linear histogram, as
// HdrHistogram's. A value's bucket is at most 1/1024 of it wide.
//
// Not thread-safe: one a thread, merged when the threads are done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nexus::io {

class Histogram {
 public:
  // Nanoseconds; anything above 2^40 (18 minutes) counts as that.
  void record(uint64_t ns);
  void merge(const Histogram& other);

  uint64_t count() const { return count_; }
  uint64_t max() const { return max_; }
  double mean() const;
  // The smallest recorded value, to three digits, that `percent` % of the values do not exceed; 0
  // when nothing was recorded.
  uint64_t percentile(double percent) const;

 private:
  static size_t bucket_of(uint64_t ns);
  static uint64_t top_of(size_t bucket);  // the largest value that lands there

  std::vector<uint32_t> counts_;  // up to the highest bucket that was needed
  uint64_t count_ = 0, max_ = 0;
  double sum_ = 0;
};

}  // namespace nexus::io
