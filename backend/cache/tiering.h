// Tiering: which objects should lie in another zone. No clock, no thread, no I/O: what is planned
// follows from what it is told.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace nexus {

// Of nvme, ssd, nfs, hdd: 0 is the fastest. nfs counts with ssd: nobody knows what is behind it.
int tier_rank(const std::string& tier);

struct TierZone {
  int rank = 0;             // tier_rank()
  uint64_t room_bytes = 0;  // for more objects, above the reserve
  uint64_t used_bytes = 0;  // by objects
  uint64_t device = 0;      // zones that share one share their room; 0: not known, none is shared
  bool usable = true;       // takes objects: writable and healthy
};

struct TierObject {
  uint64_t bytes = 0;
  size_t zone = 0;             // index
  int64_t last_access_ms = 0;  // wall clock; 0: never read
  uint64_t hits = 0;
  bool movable = true;  // complete, and nobody uses it now
};

// How much an object is wanted: twice the hits count one more, a day without one counts one less.
double heat_of(const TierObject& object, int64_t now_ms);

struct TierMove {
  size_t object = 0;        // index
  size_t from = 0, to = 0;  // zones
  bool operator==(const TierMove&) const = default;
};

struct TieringOptions {
  int64_t now_ms = 0;
  uint64_t bytes_max = UINT64_MAX;  // of all moves together: what may be written
  // Also evens out zones of one tier on different disks.
  bool rebalance = false;
};

// The moves that are worth their wear, in an order in which each finds its room:
//
//   up         an object with kHotHits hits, the last within a day, goes to the fastest tier with
//              room. Where none has, objects there that are colder by kMargin go down first, if
//              that is no more than twice its bytes.
//   down       from a zone over 90 % full, what was not used for a day goes to a slower tier, the
//              coldest first, until the zone is 80 % full.
//   rebalance  from a zone at least half full to one of the same tier on another disk that is 20
//              points emptier, the coldest first, until they are 5 points apart.
//
// An object moves once at most.
std::vector<TierMove> plan_moves(std::span<const TierZone> zones,
                                 std::span<const TierObject> objects,
                                 const TieringOptions& options);

inline constexpr uint64_t kHotHits = 3;
inline constexpr double kMargin = 2;
inline constexpr int64_t kDayMs = 86'400'000;

}  // namespace nexus
