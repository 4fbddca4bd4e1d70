// Eviction policies by themselves: what hits over a sequence of uses.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <set>

#include "backend/cache/policy.h"

namespace nexus::test {
namespace {

// A cache of a policy: uses objects, and lets go what the policy says.
class Simulation {
 public:
  Simulation(const std::string& name, uint64_t capacity)
      : policy_(make_eviction_policy(name, capacity)), capacity_(capacity) {}

  bool use(uint64_t id, uint64_t bytes = 1) {
    const bool hit = here_.contains(id);
    ++clock_;
    here_[id] = {id, bytes, static_cast<int64_t>(clock_), clock_};
    settle();
    return hit;
  }
  void prefetch(uint64_t id, uint64_t bytes = 1) {
    if (!here_.contains(id)) here_[id] = {id, bytes, 0, 0};
    settle();
  }
  void drop(uint64_t id) { here_.erase(id); }
  bool has(uint64_t id) const { return here_.contains(id); }
  uint64_t bytes() const {
    uint64_t all = 0;
    for (const auto& [id, object] : here_) all += object.bytes;
    return all;
  }
  std::set<uint64_t> busy;

 private:
  void settle() {
    std::vector<EvictionCandidate> objects;
    for (const auto& [id, object] : here_) objects.push_back(object);
    const auto order = policy_->order(objects);
    ASSERT_EQ(std::set<size_t>(order.begin(), order.end()).size(), objects.size());
    for (const size_t index : order) {
      if (bytes() <= capacity_) break;
      // The cache never evicts what was asked for just now: it is open.
      if (objects[index].last_use == clock_ || busy.contains(objects[index].id)) continue;
      here_.erase(objects[index].id);
      policy_->evicted(objects[index].id);
    }
  }

  const std::unique_ptr<EvictionPolicy> policy_;
  const uint64_t capacity_;
  uint64_t clock_ = 0;
  std::map<uint64_t, EvictionCandidate> here_;
};

// Hits of the second half of `rounds` walks over `layers`.
double walk(Simulation& cache, uint64_t layers, int rounds) {
  uint64_t hits = 0, uses = 0;
  for (int round = 0; round < rounds; ++round) {
    for (uint64_t layer = 0; layer < layers; ++layer) {
      const bool hit = cache.use(layer);
      if (round < rounds / 2) continue;
      hits += hit ? 1 : 0;
      ++uses;
    }
  }
  return static_cast<double>(hits) / static_cast<double>(uses);
}

TEST(EvictionPolicy, ACyclicWalkOverALargerModelNeverHitsUnderLru) {
  Simulation cache("lru", 20);
  EXPECT_EQ(walk(cache, 32, 10), 0.0);
}

TEST(EvictionPolicy, LirsHitsInACyclicWalkWhatTheCacheCanHold) {
  for (const uint64_t capacity : {8u, 16u, 20u, 28u, 31u}) {
    Simulation cache("lirs", capacity);
    const double bound = static_cast<double>(capacity) / 32;
    EXPECT_GT(walk(cache, 32, 10), 0.8 * bound) << capacity;
  }
}

TEST(EvictionPolicy, BothHitAlwaysWhenEverythingFits) {
  for (const char* name : {"lru", "lirs"}) {
    Simulation cache(name, 32);
    EXPECT_EQ(walk(cache, 32, 4), 1.0) << name;
  }
}

TEST(EvictionPolicy, LirsKeepsWhatIsUsedDailyThroughAScan) {
  for (const bool scan_resistant : {false, true}) {
    Simulation cache(scan_resistant ? "lirs" : "lru", 20);
    for (int round = 0; round < 4; ++round) {
      for (uint64_t id = 0; id < 15; ++id) cache.use(id);
    }
    for (uint64_t id = 1000; id < 1100; ++id) cache.use(id);
    uint64_t kept = 0;
    for (uint64_t id = 0; id < 15; ++id) kept += cache.has(id) ? 1 : 0;
    EXPECT_EQ(kept, scan_resistant ? 15u : 0u);
  }
}

TEST(EvictionPolicy, LirsFollowsWhenTheModelChanges) {
  Simulation cache("lirs", 20);
  walk(cache, 15, 6);
  uint64_t hits = 0;
  for (int round = 0; round < 20; ++round) {
    for (uint64_t id = 1000; id < 1015; ++id) hits += cache.use(id) && round >= 10 ? 1 : 0;
  }
  EXPECT_GT(hits, 15u * 10 * 9 / 10);
}

TEST(EvictionPolicy, OpeningAFileForEachTensorIsOneUse) {
  Simulation cache("lirs", 20);
  for (int round = 0; round < 4; ++round) {
    for (uint64_t id = 0; id < 15; ++id) cache.use(id);
  }
  for (uint64_t id = 1000; id < 1050; ++id) {
    for (int tensor = 0; tensor < 9; ++tensor) cache.use(id);
  }
  for (uint64_t id = 0; id < 15; ++id) EXPECT_TRUE(cache.has(id)) << id;
}

TEST(EvictionPolicy, WhatWasPrefetchedAndNeverUsedGoesBeforeWhatIsHot) {
  Simulation cache("lirs", 10);
  walk(cache, 8, 3);
  for (uint64_t id = 100; id < 110; ++id) cache.prefetch(id);
  for (uint64_t id = 0; id < 8; ++id) EXPECT_TRUE(cache.has(id)) << id;
  EXPECT_LE(cache.bytes(), 10u);
}

TEST(EvictionPolicy, StaysRightUnderAnythingThatHappens) {
  for (const char* name : {"lru", "lirs"}) {
    std::mt19937 rng(7);
    Simulation cache(name, 100);
    for (int step = 0; step < 20'000; ++step) {
      const uint64_t id = rng() % 200;
      switch (rng() % 10) {
        case 0:
          cache.drop(id);
          break;
        case 1:
          cache.prefetch(id, 1 + id % 13);
          break;
        case 2:
          cache.busy = {rng() % 200, rng() % 200};
          break;
        default:
          cache.use(id, 1 + (id + static_cast<uint64_t>(step) / 5000) % 13);  // sparse ones grow
      }
      if (HasFatalFailure()) return;
      ASSERT_LE(cache.bytes(), 100u + 3 * 13);
    }
  }
}

TEST(EvictionPolicy, OtherNamesAreNone) {
  EXPECT_EQ(make_eviction_policy("fifo", 1), nullptr);
}

}  // namespace
}  // namespace nexus::test
