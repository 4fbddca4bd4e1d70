#include "backend/store/room.h"

#include <chrono>
#include <map>
#include <mutex>
#include <thread>

#include "backend/store/zones.h"

namespace nexus {

namespace {

// Zones, and in tests stores, share disks.
std::shared_ptr<std::atomic<uint64_t>> reserved_on(uint64_t device) {
  static std::mutex mutex;
  static std::map<uint64_t, std::shared_ptr<std::atomic<uint64_t>>> disks;
  std::lock_guard lock(mutex);
  auto& disk = disks[device];
  if (!disk) disk = std::make_shared<std::atomic<uint64_t>>(0);
  return disk;
}

// What another is just writing counts twice, as reserved and as written. Near the end of the disk
// it is worth the wait until that is over.
constexpr int kTries = 20;
constexpr std::chrono::milliseconds kBetween{2};

}  // namespace

Room::~Room() {
  if (reserved_ && bytes_ > 0) reserved_->fetch_sub(bytes_);
}

Result<Room> Room::reserve(const std::string& path, uint64_t bytes) {
  Room room(reserved_on(device_of(path)), bytes);
  // First reserved, then asked: of several at once, whoever reserves last sees what all the others
  // are going to write in `wanted`, or already as not free.
  uint64_t wanted = room.reserved_->fetch_add(bytes) + bytes;
  for (int tries = 0; free_above_reserve(path) < wanted; ++tries) {
    if (wanted == bytes || tries == kTries) {
      return fail(Code::kNoSpace, path + ": the disk has reached its 5 % reserve");
    }
    std::this_thread::sleep_for(kBetween);
    wanted = room.reserved_->load();
  }
  return room;
}

}  // namespace nexus
