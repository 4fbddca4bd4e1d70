#include "prefetch/history.h"

#include <algorithm>
#include <cstdlib>

namespace nexus::prefetch {

namespace {
// How far behind the head of a walk another rank of it may be.
constexpr size_t kStragglers = 2;
// Layers that a reader may pass without our seeing it, in steps of the walk.
constexpr int kSkipMax = 2;

template <typename T>
void keep_last(std::vector<T>& items, size_t count) {
  if (items.size() > count) items.erase(items.begin());
}
}  // namespace

const Walk* AccessHistory::on_access(int layer) {
  for (Walk& walk : walks_) {
    // A walk without a direction yet has no stragglers: 0, 1, 0 is a reader that begins anew.
    const size_t behind = walk.layers.size() > 2 ? kStragglers : 0;
    const size_t look = std::min(walk.layers.size(), behind + 1);
    if (std::find(walk.layers.end() - static_cast<std::ptrdiff_t>(look), walk.layers.end(),
                  layer) == walk.layers.end()) {
      continue;
    }
    walk.used = clock_;
    note(layer, false);
    return nullptr;
  }
  ++clock_;  // ranks that repeat what others did are no sign that time went by
  note(layer, true);
  Walk* walk = continued(layer);
  if (!walk) {
    if (walks_.size() == kWalks) {
      walks_.erase(std::min_element(walks_.begin(), walks_.end(),
                                    [](auto& a, auto& b) { return a.used < b.used; }));
    }
    walks_.push_back({next_id_++, {}, clock_});
    walk = &walks_.back();
    join_walks(layer, *walk);
    walk = &walks_.back();  // others before it may be gone
  } else if (const int step = walk->step(); step != 0 && layer == walk->last() + 2 * step) {
    walk->layers.push_back(layer - step);  // passed unseen: the stride stays what it is
  }
  walk->layers.push_back(layer);
  keep_last(walk->layers, kWalkLayers);
  walk->used = clock_;
  return walk;
}

bool AccessHistory::abandoned(const Walk& walk) const {
  // One layer alone is soon doubted; ranks that walk side by side each get their turn.
  const auto longer_than = [&](size_t layers) {
    return static_cast<uint64_t>(std::count_if(
        walks_.begin(), walks_.end(), [&](const Walk& w) { return w.layers.size() > layers; }));
  };
  if (walk.layers.size() < 2) return clock_ - walk.used >= 2 + 2 * longer_than(1);
  const uint64_t going = longer_than(2);
  return clock_ - walk.used >= std::max<uint64_t>(4, 2 * going);
}

void AccessHistory::note(int layer, bool again) {
  const bool first = std::find(order_.begin(), order_.end(), layer) == order_.end();
  if (first) order_.push_back(layer);
  if (!first && !again) return;
  recent_.push_back(layer);
  keep_last(recent_, kRecent);
}

// A walk that was heading here: exactly, then with layers skipped, then one that only began.
Walk* AccessHistory::continued(int layer) {
  for (int skip = 1; skip <= kSkipMax; ++skip) {
    for (Walk& walk : walks_) {
      const int step = walk.step();
      if (step != 0 && layer == walk.last() + skip * step) return &walk;
    }
  }
  for (Walk& walk : walks_) {
    if (walk.step() == 0 && std::abs(layer - walk.last()) == 1) return &walk;
  }
  return nullptr;
}

// Three lone accesses in a row at equal distances are a strided walk, as are four with others in
// between. Their single-layer walks end in the one that begins here.
void AccessHistory::join_walks(int layer, Walk& begun) {
  const auto single = [&](int at) {
    return std::find_if(walks_.begin(), walks_.end(), [&](const Walk& w) {
      return w.id != begun.id && w.layers.size() == 1 && w.last() == at;
    });
  };
  for (int stride = 2; stride <= kStrideMax; ++stride) {
    for (const int step : {stride, -stride}) {
      const auto one = single(layer - step), two = single(layer - 2 * step);
      if (one == walks_.end() || two == walks_.end() || two->used > one->used) continue;
      const auto three = single(layer - 3 * step);
      const bool four = three != walks_.end() && three->used < two->used;
      const size_t events = recent_.size();
      const bool in_a_row = events >= 3 && recent_[events - 2] == layer - step &&
                            recent_[events - 3] == layer - 2 * step;
      if (!in_a_row && !four) continue;
      begun.layers = {layer - 2 * step, layer - step};
      if (four) begun.layers.insert(begun.layers.begin(), layer - 3 * step);
      const uint64_t id = begun.id;
      std::erase_if(walks_, [&](const Walk& w) {
        return w.id != id && w.layers.size() == 1 &&
               (w.last() == layer - step || w.last() == layer - 2 * step ||
                (four && w.last() == layer - 3 * step));
      });
      return;
    }
  }
}

}  // namespace nexus::prefetch
