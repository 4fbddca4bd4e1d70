#include "backend/store/write_budget.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace nexus {

namespace {
uint64_t written_to(const Zone& zone) {
  return zone.bytes_written() + zone.promised_bytes();
}
}  // namespace

int64_t WriteBudget::utc_day() {
  return std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now())
      .time_since_epoch()
      .count();
}

WriteBudget::WriteBudget(uint64_t daily_bytes, std::vector<std::shared_ptr<Zone>> zones,
                         std::optional<CatalogDay> begun, std::function<void(CatalogDay)> save,
                         std::function<int64_t()> today)
    : daily_bytes_(daily_bytes),
      zones_(std::move(zones)),
      save_(std::move(save)),
      today_(std::move(today)),
      day_(begun.value_or(CatalogDay{-1, {}})) {
  // One that was not there when the day began.
  for (const auto& zone : zones_) {
    day_.zone_bytes_written.try_emplace(zone->index(), zone->bytes_written());
  }
  left();  // a day that has begun meanwhile begins here
}

uint64_t WriteBudget::left() {
  std::lock_guard lock(mutex_);
  return left_locked();
}

uint64_t WriteBudget::left_locked() {
  if (daily_bytes_ == 0) return UINT64_MAX;
  const int64_t today = today_();
  if (today != day_.day) {
    day_.day = today;
    for (const auto& zone : zones_) day_.zone_bytes_written[zone->index()] = written_to(*zone);
    save_(day_);
  }
  uint64_t written = 0;
  for (const auto& zone : zones_) {
    const uint64_t now = written_to(*zone);
    written += now - std::min(now, day_.zone_bytes_written[zone->index()]);
  }
  return daily_bytes_ - std::min(written, daily_bytes_);
}

bool WriteBudget::admits(const std::string& key, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes <= left_locked()) return true;
  if (std::exchange(refused_key_, key) == key) {
    refused_key_.clear();
    return true;
  }
  return false;
}

}  // namespace nexus
