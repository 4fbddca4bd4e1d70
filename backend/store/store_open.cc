// Opening the store: its zones, the catalog, and what the last run left.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <thread>
#include <utility>

#include "backend/store/store_impl.h"

namespace nexus {

namespace {

constexpr int kMaxZones = 64;

// Makes the zone's directories and finds out what it lies on. A disk that hangs is no error: it may
// come back, and the directories are made then.
Result<void> prepare_zone(Zone& zone) {
  struct Found {
    Result<void> made;
    std::string tier;
  };
  const auto found = std::make_shared<Found>();
  const bool answered = zone.guard().run([found, path = zone.path(), tier = zone.tier()] {
    for (const std::string& dir : {path, path + "/objects"}) {
      if (found->made) found->made = make_private_dir(dir);
    }
    if (tier.empty()) found->tier = tier_of(path);
  });
  if (zone.tier().empty()) zone.set_tier(answered ? found->tier : "ssd");
  return answered ? found->made : Result<void>();
}

// All at once, so that disks that hang are waited for once.
std::vector<Result<void>> prepare_zones(const std::vector<std::shared_ptr<Zone>>& zones) {
  std::vector<Result<void>> made(zones.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < zones.size(); ++i) {
    threads.emplace_back([&made, &zones, i] { made[i] = prepare_zone(*zones[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  return made;
}

HangGuard::Options hang_options(const StoreOptions& options, int zone) {
  HangGuard::Options hang{options.hang_patience, {}};
  if (options.before_zone_call) {
    hang.before = [before = options.before_zone_call, zone] { before(zone); };
  }
  return hang;
}

// A device that is missing today or does not answer costs its zone, not the mount.
Result<std::vector<std::shared_ptr<Zone>>> open_named_zones(const StoreOptions& all) {
  const std::vector<ZoneOptions>& named = all.zones;
  std::vector<std::shared_ptr<Zone>> zones;
  for (size_t i = 0; i < named.size(); ++i) {
    const ZoneOptions& options = named[i];
    zones.push_back(std::make_shared<Zone>(static_cast<int>(i), options.path, options.tier,
                                           options.size_bytes, options.endurance_bytes,
                                           hang_options(all, static_cast<int>(i))));
  }
  const std::vector<Result<void>> made = prepare_zones(zones);
  Result<void> first_error;
  size_t usable = 0;
  for (size_t i = 0; i < zones.size(); ++i) {
    if (made[i]) ++usable;
    if (made[i]) continue;
    spdlog::warn("cache: {}; going on without this zone", made[i].error().what);
    if (first_error) first_error = made[i];
    for (int n = 0; n < Zone::kErrorsMax; ++n) zones[i]->note_error();
  }
  if (usable == 0) return tl::unexpected(first_error.error());
  return zones;
}

Result<std::vector<std::shared_ptr<Zone>>> open_zones(const StoreOptions& options) {
  if (!options.zones.empty()) return open_named_zones(options);
  const std::string& cache_dir = options.cache_dir;
  const int num_zones = options.num_zones;
  int count = num_zones;
  for (int i = num_zones; i < kMaxZones; ++i) {
    if (::access((cache_dir + "/zone_" + std::to_string(i)).c_str(), F_OK) == 0) count = i + 1;
  }
  std::vector<std::shared_ptr<Zone>> zones;
  for (int i = 0; i < count; ++i) {
    zones.push_back(std::make_shared<Zone>(i, cache_dir + "/zone_" + std::to_string(i), "",
                                           i < num_zones, hang_options(options, i)));
  }
  for (const Result<void>& made : prepare_zones(zones)) {
    if (!made) return tl::unexpected(made.error());
  }
  return zones;
}

// Never fails for the catalog's sake: what it holds can be made again.
Result<std::unique_ptr<Catalog>> open_catalog(const std::string& path) {
  auto catalog = Catalog::open(path);
  if (!catalog && catalog.error().code == Code::kCorrupt) {
    spdlog::warn("cache: {}; it is rebuilt from the sidecars", catalog.error().what);
    Catalog::move_aside(path);
    catalog = Catalog::open(path);
  }
  if (catalog) return catalog;
  spdlog::warn("cache: {}; going on without a catalog on disk", catalog.error().what);
  return Catalog::open_in_memory();
}

// What a start reads in cache_dir itself. Shared with the call that fills it, which may hang.
struct CacheDirContents {
  std::optional<Result<CacheDir>> dir;
  Result<std::unique_ptr<Catalog>> catalog;
  Result<std::vector<CatalogRow>> rows;
  std::map<int, uint64_t> wear;
  std::optional<CatalogDay> day;
};

// Another catalog takes the place of one whose rows cannot be read.
Result<std::vector<CatalogRow>> read_rows(std::unique_ptr<Catalog>& catalog,
                                          const std::string& path) {
  auto rows = catalog->objects();
  if (!rows && rows.error().code == Code::kCorrupt) {
    spdlog::warn("cache: {}; it is rebuilt from the sidecars", rows.error().what);
    catalog.reset();
    Catalog::move_aside(path);
    auto another = open_catalog(path);
    if (!another) return tl::unexpected(another.error());
    catalog = std::move(*another);
    return std::vector<CatalogRow>();
  }
  if (!rows) spdlog::warn("cache: {}; reading the sidecars", rows.error().what);
  return rows ? std::move(*rows) : std::vector<CatalogRow>();
}

void read_catalog(CacheDirContents& found, const std::string& path, bool persist) {
  found.catalog = open_catalog(path);
  if (!found.catalog) return;
  if (!persist) (void)(*found.catalog)->clear();  // what stays of it is found stale next time
  found.rows = read_rows(*found.catalog, path);
  if (!found.rows) return;
  found.wear = (*found.catalog)->zone_bytes_written().value_or(std::map<int, uint64_t>());
  found.day = (*found.catalog)->day().value_or(std::nullopt);
}

}  // namespace

Store::Impl::Impl(StoreOptions opts, CacheDir dir, std::shared_ptr<HangGuard> guard,
                  std::vector<std::shared_ptr<Zone>> opened, std::unique_ptr<Catalog> catalog,
                  std::optional<CatalogDay> day)
    : options(std::move(opts)),
      cache_dir(std::move(dir)),
      disk(std::move(guard)),
      zones(std::move(opened)),
      writer(std::move(catalog), disk, zones, options.persist,
             options.daily_write_budget_bytes > 0),
      budget(options.daily_write_budget_bytes, zones, std::move(day),
             [this](CatalogDay begun) { writer.save_day(std::move(begun)); }),
      relocations(writer, [this](ObjectFile& file) { unlink_files(file); }) {}

Result<std::unique_ptr<Store>> Store::open(StoreOptions options) {
  if (options.zones.size() > static_cast<size_t>(kMaxZones)) {
    return fail(Code::kInvalid, "more than " + std::to_string(kMaxZones) + " zones");
  }
  if (options.num_zones < 1 || options.num_zones > kMaxZones) {
    return fail(Code::kInvalid, "num_zones is " + std::to_string(options.num_zones) +
                                    "; it must be 1 to " + std::to_string(kMaxZones));
  }
  // Absolute, since files are opened late and a daemon changes its directory.
  if (!options.cache_dir.empty()) {
    std::error_code ec;
    options.cache_dir = std::filesystem::absolute(options.cache_dir, ec).lexically_normal();
    if (options.cache_dir.size() > 1 && options.cache_dir.back() == '/') {
      options.cache_dir.pop_back();
    }
  }
  const std::string& cache_dir = options.cache_dir;
  const auto disk =
      std::make_shared<HangGuard>("cache_dir " + cache_dir, hang_options(options, kCacheDirCall));
  const auto hangs = [&] {
    return fail(Code::kDisk, "cache_dir " + cache_dir + ": its disk does not answer");
  };
  const auto found = std::make_shared<CacheDirContents>();
  if (!disk->run([found, cache_dir] { found->dir = CacheDir::open(cache_dir); })) return hangs();
  if (!*found->dir) return tl::unexpected((*found->dir).error());
  raise_descriptor_limit();
  auto zones = open_zones(options);
  if (!zones) return fail(zones.error(), "cache_dir " + cache_dir);
  const bool answered = disk->run_slow([found, cache_dir, persist = options.persist] {
    read_catalog(*found, cache_dir + "/catalog.db", persist);
  });
  if (!answered) return hangs();
  if (!found->catalog) return tl::unexpected(found->catalog.error());
  if (!found->rows) return tl::unexpected(found->rows.error());
  Recovery recovery = recover_objects(*zones, std::move(*found->rows), !options.persist);
  for (const auto& zone : *zones) {
    zone->restore_bytes_written(
        std::max(found->wear[zone->index()], recovery.zone_bytes_written[zone->index()]));
  }
  auto impl =
      std::make_unique<Impl>(std::move(options), std::move(**found->dir), disk, std::move(*zones),
                             std::move(*found->catalog), std::move(found->day));
  impl->restore(std::move(recovery));
  return std::unique_ptr<Store>(new Store(std::move(impl)));
}

void Store::Impl::restore(Recovery recovery) {
  next_generation = recovery.max_generation + 1;
  unread = std::move(recovery.unread);
  for (const auto& [index, left] : unread) {
    Zone& zone = *zones[static_cast<size_t>(index)];
    zone.add_used(static_cast<int64_t>(left.bytes));  // its room is taken all the same
    spdlog::warn(
        "cache: zone {} did not answer at the start: the {} objects that lie there are "
        "unknown until the next one",
        zone.path(), left.objects);
  }
  restored.reserve(recovery.objects.size());
  writer.reserve(recovery.objects.size());
  for (RecoveredObject& object : recovery.objects) {
    SidecarRecord& record = object.record;
    auto file =
        std::make_shared<ObjectFile>(record.meta.key, std::move(object.path), object.zone, -1,
                                     record.meta.size, zones[static_cast<size_t>(object.zone)]);
    file->restore(record.bitmap, record.hashes);
    const bool current = object.row_current && object.sidecar_current;
    writer.add_restored(file, record.generation, object.sidecar_current,
                        current ? nullptr : &record.meta);
    restored.push_back({std::move(record.meta), std::move(file)});
  }
  if (!recovery.stale_rows.empty()) writer.forget_rows(std::move(recovery.stale_rows));
}

}  // namespace nexus
