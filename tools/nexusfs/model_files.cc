#include "tools/nexusfs/model_files.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>

namespace nexus::tools {
namespace {

// Of the cache's limit and of each file system: left to readers, whose bytes may be on their way.
constexpr uint64_t kReservePart = 16;

void add_origin_files(Model& model, const std::string& directory, std::vector<ModelNode>& files) {
  const auto entries = model.list(directory);
  if (!entries) return;
  for (const ModelNode& node : *entries) {
    if (node.directory) {
      add_origin_files(model, node.path, files);
    } else if (node.object && node.error.empty() && node.object->spec().headers.empty() &&
               node.object->spec().key.starts_with("blob:")) {
      files.push_back(node);
    }
  }
}

// What fits into the fullest zone too: which one a file goes to is not known yet.
uint64_t free_bytes(const CacheStats& stats) {
  const uint64_t reserve = stats.max_disk_cache_bytes / kReservePart;
  const uint64_t taken = stats.disk_cache_bytes + reserve;
  uint64_t room = stats.max_disk_cache_bytes - std::min(stats.max_disk_cache_bytes, taken);
  for (const ZoneInfo& zone : stats.zones) {
    struct statvfs fs {};
    if (zone.health != "ok" || statvfs(zone.path.c_str(), &fs) != 0) return 0;
    const uint64_t all = fs.f_blocks * fs.f_frsize, left = fs.f_bavail * fs.f_frsize;
    room = std::min(room, left - std::min(left, all / kReservePart));
  }
  return room;
}

std::vector<std::shared_ptr<Object>> files_to_fill(const Cache& cache, const Registry& registry) {
  std::set<std::string> in_use;
  for (const CachedObject& object : cache.list()) {
    if (object.info.bytes_cached > 0) in_use.insert(object.model);
  }
  std::vector<std::shared_ptr<Object>> objects;
  for (const Registry::Known& known : registry.known()) {
    const auto model = registry.mounted(known.repo, known.revision);
    if (!model || in_use.count(model->repo()) == 0) continue;
    for (const ModelNode& node : origin_files(*model)) objects.push_back(node.object);
  }
  return objects;
}

}  // namespace

std::vector<ModelNode> origin_files(Model& model) {
  std::vector<ModelNode> files;
  add_origin_files(model, "", files);
  return files;
}

prefetch::FillHooks fill_hooks(Cache& cache, Registry& registry) {
  return {[&cache] { return cache.stats().total_requests; },
          [&cache] { return free_bytes(cache.stats()); },
          [&cache, &registry] { return files_to_fill(cache, registry); }};
}

}  // namespace nexus::tools
