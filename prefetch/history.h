// The access history of one model: which layers its readers came to, sorted into walks. A walk is
// told by positions, not by processes: ranks that read the same files are one walk, a shell loop
// that reads each layer with another `cat` is one too, and ranks of a pipeline are one each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nexus::prefetch {

struct Walk {
  uint64_t id = 0;
  std::vector<int> layers;  // the last kWalkLayers, oldest first
  uint64_t used = 0;        // clock of the last event
  int last() const { return layers.back(); }
  int step() const { return layers.size() < 2 ? 0 : layers.back() - layers[layers.size() - 2]; }
};

// Not thread-safe.
class AccessHistory {
 public:
  // The walk that went on to `layer`, or began there; null when a walk was there already (another
  // rank, a second open). Valid until the next call.
  const Walk* on_access(int layer);

  std::span<const Walk> walks() const { return walks_; }
  // Whether a walk's readers seem to have left it: others were busy meanwhile, and it was not.
  bool abandoned(const Walk& walk) const;
  // Every layer since the start or clear_order(), in the order of first accesses.
  const std::vector<int>& order() const { return order_; }
  void clear_order() { order_.clear(); }
  // The last events of all walks, oldest first.
  const std::vector<int>& recent() const { return recent_; }

 private:
  static constexpr size_t kWalks = 16;
  static constexpr size_t kWalkLayers = 32;
  static constexpr size_t kRecent = 32;
  static constexpr int kStrideMax = 8;
  void note(int layer, bool again);
  Walk* continued(int layer);
  void join_walks(int layer, Walk& begun);

  std::vector<Walk> walks_;
  std::vector<int> order_, recent_;
  uint64_t clock_ = 0, next_id_ = 1;
};

}  // namespace nexus::prefetch
