#include "backend/store/zones.h"

#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <utility>

namespace nexus {

namespace fs = std::filesystem;

namespace {
constexpr uint64_t kReserveDivisor = 20;  // 5 %
constexpr long kNfsMagic = 0x6969;        // linux/magic.h NFS_SUPER_MAGIC
}  // namespace

Zone::Zone(int index, std::string path, std::string tier, bool writable, HangGuard::Options hang)
    : index_(index),
      path_(std::move(path)),
      tier_(std::move(tier)),
      writable_(writable),
      guard_("zone " + path_, std::move(hang)) {}

Zone::Zone(int index, std::string path, std::string tier, uint64_t size_bytes,
           uint64_t endurance_bytes, HangGuard::Options hang)
    : index_(index),
      path_(std::move(path)),
      tier_(std::move(tier)),
      writable_(true),
      size_bytes_(size_bytes),
      endurance_bytes_(endurance_bytes),
      guard_("zone " + path_, std::move(hang)) {}

Zone::Disk Zone::disk() const {
  const auto seen = std::make_shared<Disk>();
  const bool answered = guard_.run([seen, path = path_] {
    *seen = {free_above_reserve(path), file_system_bytes(path), device_of(path)};
  });
  std::lock_guard lock(disk_mutex_);
  if (answered) disk_ = *seen;
  if (!answered) disk_.free_bytes = 0;
  return disk_;
}

uint64_t Zone::free_bytes() const {
  const uint64_t on_disk = disk().free_bytes;
  if (size_bytes_ == 0) return on_disk;
  const uint64_t taken = used_bytes() + promised_bytes();
  return std::min(on_disk, size_bytes_ > taken ? size_bytes_ - taken : 0);
}

void Zone::note_error(Clock::time_point now) {
  last_error_ = now.time_since_epoch();
  if (errors_.fetch_add(1, std::memory_order_relaxed) == 0) first_error_ = now.time_since_epoch();
}

Zone::Health Zone::health(Clock::time_point now) const {
  if (hung()) return Health::kDown;
  if (healthy()) return Health::kOk;
  return now.time_since_epoch() - first_error_.load() < kDownAfter ? Health::kUnstable
                                                                   : Health::kDown;
}

bool Zone::worth_trying(Clock::time_point now) const {
  if (hung()) return false;
  return healthy() || now.time_since_epoch() - last_error_.load() >= kTryAgain;
}

const char* health_name(Zone::Health health) {
  switch (health) {
    case Zone::Health::kOk:
      return "ok";
    case Zone::Health::kUnstable:
      return "unstable";
    case Zone::Health::kDown:
      return "down";
  }
  return "down";
}

int pick_zone(const std::vector<ZoneLoad>& zones, uint64_t size, bool wear_leveling) {
  int best = -1;
  double best_wear = 0;
  for (size_t i = 0; i < zones.size(); ++i) {
    const ZoneLoad& zone = zones[i];
    if (!zone.usable || zone.free_bytes < size) continue;
    const uint64_t endurance = zone.endurance_bytes > 0 ? zone.endurance_bytes : kEnduranceBytes;
    const double wear = static_cast<double>(zone.wear_bytes) / static_cast<double>(endurance);
    if (best < 0 || wear < best_wear) {
      best = static_cast<int>(i);
      best_wear = wear;
    }
    if (!wear_leveling) break;
  }
  return best;
}

uint64_t free_above_reserve(const std::string& path) {
  struct statvfs st;
  if (::statvfs(path.c_str(), &st) != 0) return 0;
  const uint64_t free = static_cast<uint64_t>(st.f_bavail) * st.f_frsize;
  const uint64_t reserve = static_cast<uint64_t>(st.f_blocks) * st.f_frsize / kReserveDivisor;
  return free > reserve ? free - reserve : 0;
}

uint64_t file_system_bytes(const std::string& path) {
  struct statvfs st;
  if (::statvfs(path.c_str(), &st) != 0) return 0;
  return static_cast<uint64_t>(st.f_blocks) * st.f_frsize;
}

uint64_t device_of(const std::string& path) {
  struct stat st;
  return ::stat(path.c_str(), &st) == 0 ? st.st_dev : 0;
}

std::string tier_of(const std::string& path) {
  struct statfs fs_info;
  if (::statfs(path.c_str(), &fs_info) == 0 && fs_info.f_type == kNfsMagic) return "nfs";
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) return "ssd";
  return tier_of_device(st.st_dev, "/sys/dev/block");
}

std::string tier_of_device(dev_t device, const std::string& sys_dev_block) {
  const fs::path link = fs::path(sys_dev_block) /
                        (std::to_string(major(device)) + ":" + std::to_string(minor(device)));
  std::error_code ec;
  fs::path dir = fs::canonical(link, ec);
  if (ec) return "ssd";
  // A partition has no queue of its own; its parent directory is the disk.
  if (!fs::exists(dir / "queue", ec) && fs::exists(dir.parent_path() / "queue", ec)) {
    dir = dir.parent_path();
  }
  if (dir.filename().string().starts_with("nvme")) return "nvme";
  // LVM and encryption: dm-0 on top of the real disk.
  for (fs::directory_iterator it(dir / "slaves", ec), end; !ec && it != end; it.increment(ec)) {
    if (it->path().filename().string().starts_with("nvme")) return "nvme";
  }
  int rotational = 0;
  std::ifstream(dir / "queue" / "rotational") >> rotational;
  return rotational == 1 ? "hdd" : "ssd";
}

}  // namespace nexus
