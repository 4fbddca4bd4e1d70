// Zones: where objects lie, how worn each place is, and how much room it has.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/hang_guard.h"

namespace nexus {

// One zone's counters. Shared with the object files that lie in it, which may outlive the store.
// Thread safety: every method may be called from any thread.
class Zone {
 public:
  using Clock = std::chrono::steady_clock;

  Zone(int index, std::string path, std::string tier, bool writable, HangGuard::Options hang = {});
  // As the configuration describes it (StoreOptions::zones).
  Zone(int index, std::string path, std::string tier, uint64_t size_bytes, uint64_t endurance_bytes,
       HangGuard::Options hang = {});

  int index() const { return index_; }
  const std::string& path() const { return path_; }
  const std::string& tier() const { return tier_; }
  // Before anyone else sees the zone.
  void set_tier(std::string tier) { tier_ = std::move(tier); }
  // False for a zone left by an earlier, larger num_zones: its objects are served, none is added.
  bool writable() const { return writable_; }

  // How much it may hold and how much may ever be written to it; 0: the disk decides, not known.
  uint64_t size_bytes() const { return size_bytes_; }
  uint64_t endurance_bytes() const { return endurance_bytes_; }
  // For another object: of the disk, above the reserve, and of what the zone may hold.
  uint64_t free_bytes() const;
  // Of its file system; while that hangs nothing is free, and the rest is as it was.
  struct Disk {
    uint64_t free_bytes = 0;  // above the reserve
    uint64_t size_bytes = 0;
    uint64_t device = 0;  // st_dev
  };
  Disk disk() const;

  // Calls on its file system that may hang go through this.
  HangGuard& guard() const { return guard_; }
  // Counts as down, whatever its errors: it gets nothing and is not read, until it answers.
  bool hung() const { return guard_.hung(); }

  // Ever, persistent; restored once at start.
  uint64_t bytes_written() const { return bytes_written_.load(std::memory_order_relaxed); }
  void restore_bytes_written(uint64_t bytes) { bytes_written_ = bytes; }
  void add_written(uint64_t bytes) { bytes_written_.fetch_add(bytes, std::memory_order_relaxed); }

  // Present chunks of the objects here.
  uint64_t used_bytes() const { return used_bytes_.load(std::memory_order_relaxed); }
  void add_used(int64_t bytes) {
    used_bytes_.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  }

  // Bytes that objects already placed here are still going to write. Counted as wear when the next
  // object is placed; else a burst of creations would all land in the zone that was least worn.
  uint64_t promised_bytes() const { return promised_bytes_.load(std::memory_order_relaxed); }
  void add_promised(int64_t bytes) {
    promised_bytes_.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  }

  // Health: three I/O errors without a write that succeeded make a zone unstable, kDownAfter of
  // them down. One success makes it well again; so that there can be one, it is tried again now and
  // then. A write into the page cache says nothing of the disk, so that where files are synced only
  // a sync is a success.
  enum class Health { kOk, kUnstable, kDown };
  static constexpr int kErrorsMax = 3;
  static constexpr std::chrono::minutes kDownAfter{30};
  static constexpr std::chrono::seconds kTryAgain{60};
  void note_success() {
    if (errors_.load(std::memory_order_relaxed) != 0) errors_ = 0;
  }
  void note_written() {
    if (!syncs_.load(std::memory_order_relaxed)) note_success();
  }
  // Files here are synced from now on.
  void expect_syncs() { syncs_.store(true, std::memory_order_relaxed); }
  void note_error(Clock::time_point now = Clock::now());
  bool healthy() const { return errors_.load(std::memory_order_relaxed) < kErrorsMax && !hung(); }
  Health health(Clock::time_point now = Clock::now()) const;
  // Whether a new object may be tried here: healthy, or kTryAgain since the last error.
  bool worth_trying(Clock::time_point now = Clock::now()) const;

 private:
  const int index_;
  const std::string path_;
  std::string tier_;
  const bool writable_;
  const uint64_t size_bytes_ = 0, endurance_bytes_ = 0;
  std::atomic<uint64_t> bytes_written_{0}, used_bytes_{0}, promised_bytes_{0};
  std::atomic<int> errors_{0};
  std::atomic<bool> syncs_{false};
  std::atomic<Clock::duration> first_error_{}, last_error_{};  // of those; since the clock's epoch
  mutable std::mutex disk_mutex_;                              // guards disk_
  mutable Disk disk_;                                          // as last seen
  mutable HangGuard guard_;
};

const char* health_name(Zone::Health health);

// What the choice of a zone depends on.
struct ZoneLoad {
  uint64_t wear_bytes = 0;       // written and promised
  uint64_t free_bytes = 0;       // above the reserve
  bool usable = true;            // writable and healthy
  uint64_t endurance_bytes = 0;  // 0: not known, which counts as kEnduranceBytes
};
// What a drive of 1 TB is commonly rated for, 600 TBW.
inline constexpr uint64_t kEnduranceBytes = 600'000'000'000'000;

// The usable zone that is least worn relative to its endurance with `size` bytes of room, the first
// of equals; without wear levelling simply the first with room. -1: none has room.
int pick_zone(const std::vector<ZoneLoad>& zones, uint64_t size, bool wear_leveling);

// Free bytes of the file system that holds `path`, above a reserve of 5 % of its size; 0 when it
// cannot be asked.
uint64_t free_above_reserve(const std::string& path);
uint64_t file_system_bytes(const std::string& path);
uint64_t device_of(const std::string& path);  // st_dev; 0 when it cannot be asked

// "nvme", "ssd", "hdd" or "nfs". What the kernel does not tell (overlayfs, tmpfs) counts as "ssd".
std::string tier_of(const std::string& path);
std::string tier_of_device(dev_t device, const std::string& sys_dev_block);

}  // namespace nexus
