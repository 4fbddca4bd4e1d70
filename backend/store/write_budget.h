// The daily write budget: how much may still be written to the zones on this day (UTC). A day's
// beginning is written down with the wear of each zone, so that a restart goes on with what is left
// of it. What a killed daemon had written and not yet written down is not counted; that is the
// writes of about a second, or what an object that waits for its bytes got within five.
//
// Thread safety: every method may be called from any thread; none waits for a disk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/store/catalog.h"
#include "backend/store/zones.h"

namespace nexus {

class WriteBudget {
 public:
  // `daily_bytes` 0: no limit. `begun`: the day that an earlier run began, if any. `save` writes
  // down a day that begins, and `today` gives its number since 1970.
  WriteBudget(uint64_t daily_bytes, std::vector<std::shared_ptr<Zone>> zones,
              std::optional<CatalogDay> begun, std::function<void(CatalogDay)> save,
              std::function<int64_t()> today = utc_day);

  // UINT64_MAX without a limit.
  uint64_t left();
  // Whether an object may be placed that writes `bytes`. It is refused once: a reader matters more
  // than the budget, and who could not keep it in memory asks for it again.
  bool admits(const std::string& key, uint64_t bytes);

  static int64_t utc_day();

 private:
  uint64_t left_locked();

  const uint64_t daily_bytes_;
  const std::vector<std::shared_ptr<Zone>> zones_;
  const std::function<void(CatalogDay)> save_;
  const std::function<int64_t()> today_;

  std::mutex mutex_;  // guards the rest
  CatalogDay day_;
  std::string refused_key_;  // of the last object that was over the budget
};

}  // namespace nexus
