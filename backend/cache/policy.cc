#include "backend/cache/policy.h"

#include <algorithm>
#include <list>
#include <numeric>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace nexus {

namespace {

class Lru final : public EvictionPolicy {
 public:
  std::vector<size_t> order(std::span<const EvictionCandidate> objects) override {
    std::vector<size_t> indices(objects.size());
    std::iota(indices.begin(), indices.end(), size_t{0});
    std::stable_sort(indices.begin(), indices.end(), [&](size_t a, size_t b) {
      return objects[a].last_access_ms < objects[b].last_access_ms;
    });
    return indices;
  }
  void evicted(uint64_t) override {}
};

// Two lists. The stack holds objects by their last use, newest first: all of the hot ones (LIR),
// and cold ones (HIR), here or gone, that were used since the oldest hot one. A cold one that is
// used again while it is in the stack was away for less than that hot one: they change places. The
// queue holds the cold ones that are here, in the order in which they go.
class Lirs final : public EvictionPolicy {
 public:
  explicit Lirs(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}

  std::vector<size_t> order(std::span<const EvictionCandidate> objects) override {
    std::unordered_map<uint64_t, size_t> here;
    here.reserve(objects.size());
    for (size_t i = 0; i < objects.size(); ++i) {
      here.emplace(objects[i].id, i);
      largest_ = std::max(largest_, objects[i].bytes);
    }
    forget_what_left(here);
    take_uses(objects);

    std::vector<size_t> indices;
    indices.reserve(objects.size());
    for (const uint64_t id : queue_) indices.push_back(here.at(id));
    for (auto it = stack_.rbegin(); it != stack_.rend(); ++it) {
      if (entries_.at(*it).hot) indices.push_back(here.at(*it));
    }
    return indices;
  }

  void evicted(uint64_t id) override {
    auto it = entries_.find(id);
    if (it == entries_.end()) return;
    Entry& entry = it->second;
    leave_queue(entry);
    if (entry.hot) {
      entry.hot = false;
      hot_bytes_ -= entry.bytes;
    }
    entry.here = false;
    if (!entry.stacked) {
      entries_.erase(it);
    } else {
      ++gone_;
    }
    prune();
    bound_gone();
  }

 private:
  struct Entry {
    uint64_t bytes = 0, last_use = 0;
    bool here = false, hot = false, stacked = false, queued = false;
    std::list<uint64_t>::iterator in_stack = {}, in_queue = {};
  };
  // Objects that are gone and remembered, for each one that is here; and at least.
  static constexpr size_t kGoneForEachHere = 4, kGoneMin = 1024;

  // The cold part must hold the largest object, else that one could never pass through it.
  uint64_t hot_max() const {
    const uint64_t cold = std::max(capacity_ / 20, largest_);
    return capacity_ > cold ? capacity_ - cold : 0;
  }

  // Dropped for another reason than eviction: then nobody misses them.
  void forget_what_left(const std::unordered_map<uint64_t, size_t>& here) {
    std::vector<uint64_t> left;
    for (const auto& [id, entry] : entries_) {
      if (entry.here && !here.contains(id)) left.push_back(id);
    }
    for (const uint64_t id : left) {
      Entry& entry = entries_.at(id);
      leave_queue(entry);
      if (entry.hot) hot_bytes_ -= entry.bytes;
      if (entry.stacked) stack_.erase(entry.in_stack);
      entries_.erase(id);
    }
    prune();
  }

  // In the order of their uses; those that were never opened first, as cold ones.
  void take_uses(std::span<const EvictionCandidate> objects) {
    std::vector<const EvictionCandidate*> news;
    for (const EvictionCandidate& object : objects) {
      auto it = entries_.find(object.id);
      if (it != entries_.end() && it->second.here) {
        resize(it->second, object.bytes);
        if (object.last_use == it->second.last_use) continue;
      }
      news.push_back(&object);
    }
    std::stable_sort(news.begin(), news.end(), [](const auto* a, const auto* b) {
      return std::tie(a->last_use, a->last_access_ms) < std::tie(b->last_use, b->last_access_ms);
    });
    for (const EvictionCandidate* object : news) take_use(*object);
  }

  void resize(Entry& entry, uint64_t bytes) {
    if (entry.hot) hot_bytes_ += bytes - entry.bytes;
    entry.bytes = bytes;
  }

  void take_use(const EvictionCandidate& object) {
    auto [it, fresh] = entries_.try_emplace(object.id);
    Entry& entry = it->second;
    const bool was_here = entry.here;
    if (!fresh && !was_here) --gone_;
    entry.here = true;
    resize(entry, object.bytes);
    // Opened and closed once for each tensor, as some loaders do, is one use.
    const bool again = !fresh && was_here && !stack_.empty() && stack_.front() == object.id;
    const bool used = object.last_use != 0 && object.last_use != entry.last_use;
    entry.last_use = object.last_use;
    if (again) return;
    // What an earlier run left has been used too, though nobody knows in what order with what.
    const bool room = hot_bytes_ + entry.bytes <= hot_max();
    const bool known_use = used || (fresh && object.last_access_ms > 0);
    if (!known_use) return enter_queue(object.id, entry);
    if (entry.hot) {
      push(object.id, entry);
    } else if (entry.stacked || (fresh && room)) {
      leave_queue(entry);
      entry.hot = true;
      hot_bytes_ += entry.bytes;
      push(object.id, entry);
      cool();
    } else {
      push(object.id, entry);
      leave_queue(entry);
      enter_queue(object.id, entry);
    }
    prune();
  }

  void push(uint64_t id, Entry& entry) {
    if (entry.stacked) stack_.erase(entry.in_stack);
    stack_.push_front(id);
    entry.in_stack = stack_.begin();
    entry.stacked = true;
  }

  void enter_queue(uint64_t id, Entry& entry) {
    if (entry.queued) return;
    queue_.push_back(id);
    entry.in_queue = std::prev(queue_.end());
    entry.queued = true;
  }

  void leave_queue(Entry& entry) {
    if (entry.queued) queue_.erase(entry.in_queue);
    entry.queued = false;
  }

  // The hot ones used longest ago turn cold until the rest fits.
  void cool() {
    while (hot_bytes_ > hot_max()) {
      prune();
      if (stack_.empty()) return;
      const uint64_t id = stack_.back();
      Entry& entry = entries_.at(id);
      entry.hot = false;
      hot_bytes_ -= entry.bytes;
      stack_.pop_back();
      entry.stacked = false;
      enter_queue(id, entry);
    }
  }

  // The oldest of the stack is hot: what is older than every hot one has been away too long.
  void prune() {
    while (!stack_.empty() && !entries_.at(stack_.back()).hot) {
      const uint64_t id = stack_.back();
      stack_.pop_back();
      unstack(id);
    }
  }

  void bound_gone() {
    const size_t most = std::max(kGoneMin, kGoneForEachHere * (entries_.size() - gone_));
    for (auto it = stack_.end(); gone_ > most && it != stack_.begin();) {
      --it;
      if (entries_.at(*it).here) continue;
      const uint64_t id = *it;
      it = stack_.erase(it);
      unstack(id);
    }
  }

  void unstack(uint64_t id) {
    Entry& entry = entries_.at(id);
    entry.stacked = false;
    if (entry.here) return;
    --gone_;
    entries_.erase(id);
  }

  const uint64_t capacity_;
  uint64_t largest_ = 0, hot_bytes_ = 0;
  size_t gone_ = 0;
  std::unordered_map<uint64_t, Entry> entries_;
  std::list<uint64_t> stack_, queue_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(const std::string& name,
                                                     uint64_t capacity_bytes) {
  if (name == "lru") return std::make_unique<Lru>();
  if (name == "lirs") return std::make_unique<Lirs>(capacity_bytes);
  return nullptr;
}

}  // namespace nexus
