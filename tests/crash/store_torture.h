// What store_torture says to whoever kills it (tests/unit/store_recovery_test.cc).
#pragma once

#include <cstdint>

namespace nexus::crash_test {

constexpr uint32_t kTortureKeys = 6;
constexpr int kTortureReports = 3;  // the file descriptor they are written to, one each step

// This much of object `key`, whose bytes follow from `seed`, was durable at a flush. No chunks: it
// was made anew or removed. A key of kTortureKeys: neither.
struct TortureReport {
  uint32_t key;
  uint32_t seed;
  uint64_t chunks;
};

}  // namespace nexus::crash_test
