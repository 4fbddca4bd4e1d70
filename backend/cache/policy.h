// Eviction: which objects go first when the disk tier is full. No clock, no thread, no I/O: what a
// policy says follows from what it was told.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nexus {

// What a policy knows of an object that is here. Whether it may go at all (open, pinned, waited
// for) is the cache's business.
struct EvictionCandidate {
  uint64_t id = 0;  // of its identity, the same when it comes back
  uint64_t bytes = 0;
  int64_t last_access_ms = 0;  // wall clock, across restarts
  // Grows with each opening of any object, so it puts uses in order; 0: not opened in this run.
  uint64_t last_use = 0;
};

// Thread safety: none; the cache's core thread owns it.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // Everything that is here, in whatever order. Returns indices into it, first to go first.
  virtual std::vector<size_t> order(std::span<const EvictionCandidate> objects) = 0;
  // It left by eviction, and may be missed.
  virtual void evicted(uint64_t id) = 0;
};

// "lru", the default, or "lirs"; null for any other name. `capacity_bytes` is the tier's limit.
//
// lru   Least recently used first. Walking round a model larger than the cache never hits: what
//       goes is always what is wanted next.
// lirs  Low inter-reference recency set (Jiang and Zhang, SIGMETRICS 2002), over bytes. Objects
//       used again soonest hold most of the cache; the rest pass through a small part of it. A walk
//       round a model larger than the cache hits about capacity/model of the time, and one pass
//       over another model does not sweep away what is used daily.
std::unique_ptr<EvictionPolicy> make_eviction_policy(const std::string& name,
                                                     uint64_t capacity_bytes);

}  // namespace nexus
