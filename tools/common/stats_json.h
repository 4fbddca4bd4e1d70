// The JSON of `nexusctl stats --json` and of the xattr user.nexus.stats: one builder for both.
#pragma once

#include <string>
#include <vector>

#include "backend/cache/cache.h"
#include "backend/net/http_client.h"
#include "prefetch/scheduler.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

// The whole mount. *_gb are 10^9 bytes. Of the prefetcher: total_requests are layers that readers
// came to, cache_hits those that were here or on their way by read-ahead, avg_latency_ms how long a
// layer took to fetch ahead, queue_depth the layers on their way. downloader.hosts are those talked
// to, downloader.queue the requests that wait for a connection.
Json stats_json(const CacheStats& stats, const prefetch::PrefetchStats& prefetch = {},
                const std::vector<HostTraffic>& hosts = {}, const HttpQueue& queue = {});
// What is known of one model alone: its entries, bytes and hits, under the same names.
Json model_stats_json(const std::string& model, const std::vector<CachedObject>& objects);
// [{"path", "tier", "bytes_written", "size", "used", "health"}], sizes in bytes.
Json scrub_json(const ScrubState& scrub);
Json zones_json(const std::vector<ZoneInfo>& zones);
// [{"model", "name", "state", "size", "bytes_cached", "percent", "tier", "hits", ...}], by name;
// what is being fetched also has "bytes_per_s", "waiters" and "eta_s" (null while the rate is 0).
Json objects_json(const std::vector<CachedObject>& objects, const std::vector<Progress>& progress);

// "absent", "fetching", "resident".
const char* state_name(ObjectState state);

}  // namespace nexus::tools
