#include "backend/cache/tiering.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

namespace nexus {

namespace {

constexpr double kHighWater = 0.9, kLowWater = 0.8;
constexpr double kUnevenFrom = 0.5, kUnevenBy = 0.2, kEvenWithin = 0.05;
constexpr uint64_t kVictimsPerByte = 2;

// The zones as they will be when what is planned so far has happened.
class Plan {
 public:
  Plan(std::span<const TierZone> zones, std::span<const TierObject> objects,
       const TieringOptions& options)
      : zones_(zones.begin(), zones.end()),
        objects_(objects),
        bytes_left_(options.bytes_max),
        now_ms_(options.now_ms),
        moved_(objects.size(), false),
        by_heat_(objects.size()) {
    heat_.reserve(objects.size());
    for (const TierObject& object : objects) heat_.push_back(heat_of(object, now_ms_));
    std::iota(by_heat_.begin(), by_heat_.end(), size_t{0});
    // Coldest first; of equals the larger first, which makes room with fewer moves.
    std::stable_sort(by_heat_.begin(), by_heat_.end(), [&](size_t a, size_t b) {
      return heat_[a] != heat_[b] ? heat_[a] < heat_[b] : objects_[a].bytes > objects_[b].bytes;
    });
  }

  void up() {
    for (auto it = by_heat_.rbegin(); it != by_heat_.rend(); ++it) {
      const size_t hot = *it;
      const TierObject& object = objects_[hot];
      if (!may_move(hot) || object.hits < kHotHits || !used_lately(object)) continue;
      const int rank = zones_[object.zone].rank;
      for (int faster = 0; faster < rank; ++faster) {
        if (auto to = roomiest(faster, object.bytes)) {
          move(hot, *to);
          break;
        }
        if (make_room(faster, hot)) break;
      }
    }
  }

  void down() {
    for (size_t zone = 0; zone < zones_.size(); ++zone) {
      if (fill(zone) <= kHighWater) continue;
      for (const size_t cold : by_heat_) {
        if (fill(zone) <= kLowWater) break;
        if (objects_[cold].zone != zone || !may_move(cold) || used_lately(objects_[cold])) continue;
        if (auto to = slower(zones_[zone].rank, objects_[cold].bytes)) move(cold, *to);
      }
    }
  }

  void rebalance() {
    for (size_t zone = 0; zone < zones_.size(); ++zone) {
      if (fill(zone) < kUnevenFrom) continue;
      std::optional<size_t> emptiest;
      for (size_t other = 0; other < zones_.size(); ++other) {
        const bool apart = zones_[other].device == 0 || zones_[other].device != zones_[zone].device;
        if (other == zone || !apart || !zones_[other].usable) continue;
        if (zones_[other].rank != zones_[zone].rank) continue;
        if (!emptiest || fill(other) < fill(*emptiest)) emptiest = other;
      }
      if (!emptiest || fill(zone) - fill(*emptiest) < kUnevenBy) continue;
      for (const size_t cold : by_heat_) {
        const TierObject& object = objects_[cold];
        if (object.zone != zone || !may_move(cold)) continue;
        if (zones_[*emptiest].room_bytes < object.bytes) continue;
        // Not so large that the other one would be the fuller then.
        const double before = fill(zone) - fill(*emptiest);
        if (before <= kEvenWithin) break;
        if (share(object.bytes, zone) + share(object.bytes, *emptiest) > before) continue;
        move(cold, *emptiest);
      }
    }
  }

  std::vector<TierMove> take() { return std::move(moves_); }

 private:
  bool used_lately(const TierObject& object) const {
    return object.last_access_ms > 0 && now_ms_ - object.last_access_ms < kDayMs;
  }
  // It may leave where it is. A zone that is not well is left alone: its disk may not even be read.
  bool may_move(size_t object) const {
    return objects_[object].movable && !moved_[object] && objects_[object].bytes > 0 &&
           objects_[object].bytes <= bytes_left_ && zones_[objects_[object].zone].usable;
  }
  double capacity(size_t zone) const {
    return static_cast<double>(zones_[zone].used_bytes + zones_[zone].room_bytes);
  }
  double fill(size_t zone) const {
    return capacity(zone) > 0 ? static_cast<double>(zones_[zone].used_bytes) / capacity(zone) : 0;
  }
  double share(uint64_t bytes, size_t zone) const {
    return static_cast<double>(bytes) / capacity(zone);
  }

  std::optional<size_t> roomiest(int rank, uint64_t bytes) const {
    std::optional<size_t> best;
    for (size_t i = 0; i < zones_.size(); ++i) {
      const TierZone& zone = zones_[i];
      if (zone.rank != rank || !zone.usable || zone.room_bytes < bytes) continue;
      if (!best || zone.room_bytes > zones_[*best].room_bytes) best = i;
    }
    return best;
  }
  // In the next slower tier that has room.
  std::optional<size_t> slower(int rank, uint64_t bytes) const {
    int slowest = 0;
    for (const TierZone& zone : zones_) slowest = std::max(slowest, zone.rank);
    for (int next = rank + 1; next <= slowest; ++next) {
      if (auto to = roomiest(next, bytes)) return to;
    }
    return std::nullopt;
  }

  // Moves colder objects of the tier down until `hot` fits into one of its zones, then `hot`; or
  // nothing.
  bool make_room(int rank, size_t hot) {
    const uint64_t wanted = objects_[hot].bytes;
    for (size_t zone = 0; zone < zones_.size(); ++zone) {
      if (zones_[zone].rank != rank || !zones_[zone].usable) continue;
      const std::vector<TierZone> zones_before = zones_;
      const size_t moves_before = moves_.size();
      uint64_t victims = 0;
      for (const size_t cold : by_heat_) {
        if (zones_[zone].room_bytes >= wanted || heat_[cold] + kMargin > heat_[hot]) break;
        if (objects_[cold].zone != zone || !may_move(cold)) continue;
        if (victims + objects_[cold].bytes > kVictimsPerByte * wanted) continue;
        auto to = slower(rank, objects_[cold].bytes);
        if (!to) continue;
        victims += objects_[cold].bytes;
        move(cold, *to);
      }
      if (zones_[zone].room_bytes >= wanted && may_move(hot)) {
        move(hot, zone);
        return true;
      }
      zones_ = zones_before;
      for (; moves_.size() > moves_before; moves_.pop_back()) {
        moved_[moves_.back().object] = false;
        bytes_left_ += objects_[moves_.back().object].bytes;
      }
    }
    return false;
  }

  void move(size_t object, size_t to) {
    const uint64_t bytes = objects_[object].bytes;
    const size_t from = objects_[object].zone;
    moves_.push_back({object, from, to});
    moved_[object] = true;
    bytes_left_ -= bytes;
    zones_[from].used_bytes -= std::min(bytes, zones_[from].used_bytes);
    zones_[to].used_bytes += bytes;
    for (size_t i = 0; i < zones_.size(); ++i) {
      const auto on_disk_of = [&](size_t zone) {
        return i == zone || (zones_[i].device != 0 && zones_[i].device == zones_[zone].device);
      };
      if (on_disk_of(from)) zones_[i].room_bytes += bytes;
      if (on_disk_of(to)) zones_[i].room_bytes -= std::min(bytes, zones_[i].room_bytes);
    }
  }

  std::vector<TierZone> zones_;
  std::span<const TierObject> objects_;
  uint64_t bytes_left_;
  int64_t now_ms_;
  std::vector<bool> moved_;
  std::vector<size_t> by_heat_;
  std::vector<double> heat_;
  std::vector<TierMove> moves_;
};

}  // namespace

int tier_rank(const std::string& tier) {
  if (tier == "nvme") return 0;
  return tier == "hdd" ? 2 : 1;
}

double heat_of(const TierObject& object, int64_t now_ms) {
  if (object.last_access_ms == 0) return -std::numeric_limits<double>::infinity();
  const int64_t age_ms = std::max<int64_t>(0, now_ms - object.last_access_ms);
  return std::log2(1.0 + static_cast<double>(object.hits)) -
         static_cast<double>(age_ms) / static_cast<double>(kDayMs);
}

std::vector<TierMove> plan_moves(std::span<const TierZone> zones,
                                 std::span<const TierObject> objects,
                                 const TieringOptions& options) {
  Plan plan(zones, objects, options);
  plan.up();
  plan.down();
  if (options.rebalance) plan.rebalance();
  return plan.take();
}

}  // namespace nexus
