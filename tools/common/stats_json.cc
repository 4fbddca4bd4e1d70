#include "tools/common/stats_json.h"

#include <algorithm>
#include <cstdint>
#include <map>

namespace nexus::tools {
namespace {

double in_gb(uint64_t bytes) {
  return static_cast<double>(bytes) / 1e9;
}

double ratio(uint64_t part, uint64_t other) {
  const uint64_t all = part + other;
  return all == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(all);
}

double percent_of(uint64_t part, uint64_t whole) {
  return whole == 0 ? 100.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

const char* state_name(ObjectState state) {
  switch (state) {
    case ObjectState::kAbsent:
      return "absent";
    case ObjectState::kFetching:
      return "fetching";
    case ObjectState::kResident:
      return "resident";
  }
  return "absent";
}

Json zones_json(const std::vector<ZoneInfo>& zones) {
  Json list = Json::array();
  for (const ZoneInfo& zone : zones) {
    list.push_back(Json{{"path", zone.path},
                        {"tier", zone.tier},
                        {"bytes_written", zone.bytes_written},
                        {"size", zone.size_bytes},
                        {"used", zone.used_bytes},
                        {"health", zone.health}});
    if (zone.unread) list.back()["unread"] = true;
    // The part of its endurance that is used up.
    if (zone.endurance_bytes > 0) {
      list.back()["wear"] =
          static_cast<double>(zone.bytes_written) / static_cast<double>(zone.endurance_bytes);
    }
  }
  return list;
}

Json scrub_json(const ScrubState& scrub) {
  return Json{{"on", scrub.on},
              {"running", scrub.running},
              {"passes", scrub.passes},
              {"files_done", scrub.progress.objects_done},
              {"files_total", scrub.progress.objects_total},
              {"bytes_done", scrub.progress.bytes_done},
              {"bytes_total", scrub.progress.bytes_total},
              {"last_pass_ms", scrub.last_pass_ms},
              {"checked_bytes", scrub.checked_bytes},
              {"corrupt", scrub.corrupt}};
}

Json hosts_json(const std::vector<HostTraffic>& hosts) {
  Json list = Json::array();
  for (const HostTraffic& host : hosts) {
    list.push_back(Json{{"origin", host.origin},
                        {"requests", host.requests},
                        {"failed", host.failed},
                        {"retries", host.retries},
                        {"hedges", host.hedges},
                        {"active", host.active},
                        {"bytes", host.bytes},
                        {"bytes_per_s", host.bytes_per_s},
                        {"round_trip_ms", host.round_trip_ms},
                        {"first_byte_ms", host.first_byte_ms}});
  }
  return list;
}

Json stats_json(const CacheStats& stats, const prefetch::PrefetchStats& prefetch,
                const std::vector<HostTraffic>& hosts, const HttpQueue& queue) {
  const Json performance = {{"total_hits", stats.total_hits},
                            {"total_misses", stats.total_misses},
                            {"total_evictions", stats.total_evictions},
                            {"cache_hit_ratio", ratio(stats.total_hits, stats.total_misses)},
                            {"total_requests", stats.total_requests},
                            {"avg_latency_ms", stats.avg_latency_ms},
                            {"reads_waited", stats.reads_waited},
                            {"read_wait_s", stats.read_wait_s},
                            {"bytes_downloaded", stats.bytes_downloaded},
                            {"bytes_served_from_cache", stats.bytes_served_from_cache}};
  const double fetches = static_cast<double>(std::max<uint64_t>(prefetch.fetches, 1));
  const Json prefetcher = {
      {"cache_hits", prefetch.cache_hits},
      {"total_requests", prefetch.total_requests},
      {"prefetch_hit_ratio",
       ratio(prefetch.cache_hits, prefetch.total_requests - prefetch.cache_hits)},
      {"avg_latency_ms", static_cast<double>(prefetch.fetch_ms) / fetches},
      {"queue_depth", prefetch.queue_depth},
      {"wasted_bytes", stats.prefetch_wasted_bytes},
      {"issued_bytes", stats.prefetch_issued_bytes},
      {"used_bytes", stats.prefetch_used_bytes}};
  return Json{
      {"disk_cache_entries", stats.disk_cache_entries},
      {"memory_cache_entries", stats.memory_cache_entries},
      {"disk_cache_size_gb", in_gb(stats.disk_cache_bytes)},
      {"memory_cache_size_gb", in_gb(stats.memory_cache_bytes)},
      {"max_disk_cache_size_gb", in_gb(stats.max_disk_cache_bytes)},
      {"max_memory_cache_size_gb", in_gb(stats.max_memory_cache_bytes)},
      {"performance", performance},
      {"prefetcher", prefetcher},
      {"downloader", Json{{"active_downloads", stats.active_downloads},
                          {"queue", Json{{"demand", queue.demand},
                                         {"read_ahead", queue.read_ahead},
                                         {"prefetch", queue.prefetch}}},
                          {"hosts", hosts_json(hosts)}}},
      {"scrub", scrub_json(stats.scrub)},
      {"migration", Json{{"objects", stats.migrated_objects}, {"bytes", stats.migrated_bytes}}},
      {"zones", zones_json(stats.zones)}};
}

Json model_stats_json(const std::string& model, const std::vector<CachedObject>& objects) {
  uint64_t disk_entries = 0, memory_entries = 0, disk_bytes = 0, memory_bytes = 0, hits = 0,
           fetching = 0;
  for (const CachedObject& object : objects) {
    if (object.model != model) continue;
    hits += object.info.hits;
    fetching += object.info.state == ObjectState::kFetching ? 1 : 0;
    const bool in_memory = object.info.tier == "ram";
    if (in_memory) {
      ++memory_entries;
      memory_bytes += object.info.bytes_cached;
    }
    if (object.info.zone >= 0) {  // a copy in memory is of what is on disk
      ++disk_entries;
      disk_bytes += object.info.bytes_cached;
    }
  }
  return Json{{"model", model},
              {"disk_cache_entries", disk_entries},
              {"memory_cache_entries", memory_entries},
              {"disk_cache_size_gb", in_gb(disk_bytes)},
              {"memory_cache_size_gb", in_gb(memory_bytes)},
              {"performance", Json{{"total_hits", hits}}},
              {"downloader", Json{{"active_downloads", fetching}}}};
}

Json objects_json(const std::vector<CachedObject>& objects, const std::vector<Progress>& progress) {
  std::map<std::string, const Progress*> fetching;
  for (const Progress& one : progress) fetching[one.name] = &one;
  std::vector<const CachedObject*> sorted;
  for (const CachedObject& object : objects) sorted.push_back(&object);
  std::sort(sorted.begin(), sorted.end(),
            [](const CachedObject* a, const CachedObject* b) { return a->name < b->name; });

  Json list = Json::array();
  for (const CachedObject* object : sorted) {
    const ObjectInfo& info = object->info;
    Json entry = {{"model", object->model},
                  {"name", object->name},
                  {"state", state_name(info.state)},
                  {"size", info.size},
                  {"bytes_cached", info.bytes_cached},
                  {"percent", percent_of(info.bytes_cached, info.size)},
                  {"tier", info.tier},
                  {"hits", info.hits},
                  {"pinned", info.pinned}};
    if (!info.error.empty()) entry["error"] = info.error;
    if (auto found = fetching.find(object->name); found != fetching.end()) {
      const Progress& now = *found->second;
      const uint64_t left = now.bytes_total > now.bytes_done ? now.bytes_total - now.bytes_done : 0;
      entry["bytes_per_s"] = now.bytes_per_s;
      entry["waiters"] = now.waiters;
      entry["eta_s"] =
          now.bytes_per_s >= 1 ? Json(static_cast<double>(left) / now.bytes_per_s) : Json();
    }
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace nexus::tools
