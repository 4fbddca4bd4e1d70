// The JSON of `nexusctl stats --json` and of the xattr user.nexus.stats: one builder for both.
#pragma once

#include <string>
#include <vector>

#include "backend/cache/cache.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

// The whole mount. *_gb are 10^9 bytes. What has no value in this version (the prefetcher's hits)
// is 0.
Json stats_json(const CacheStats& stats);
// What is known of one model alone: its entries, bytes and hits, under the same names.
Json model_stats_json(const std::string& model, const std::vector<CachedObject>& objects);
// [{"path", "tier", "bytes_written", "size", "used", "health"}], sizes in bytes.
Json zones_json(const std::vector<ZoneInfo>& zones);
// [{"model", "name", "state", "size", "bytes_cached", "percent", "tier", "hits", ...}], by name;
// what is being fetched also has "bytes_per_s", "waiters" and "eta_s" (null while the rate is 0).
Json objects_json(const std::vector<CachedObject>& objects, const std::vector<Progress>& progress);

// "absent", "fetching", "resident".
const char* state_name(ObjectState state);

}  // namespace nexus::tools
