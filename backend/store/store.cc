#include "backend/store/store.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <utility>

#include "backend/store/cache_dir.h"
#include "backend/store/catalog.h"
#include "backend/store/new_file.h"
#include "backend/store/recovery.h"
#include "backend/store/relocation.h"
#include "backend/store/room.h"
#include "backend/store/upkeep.h"
#include "backend/store/write_budget.h"
#include "backend/store/writer.h"
#include "backend/store/zones.h"

namespace nexus {

namespace {

constexpr int kMaxZones = 64;
constexpr size_t kMaxKeyBytes = 1024;
constexpr uint64_t kMaxObjectBytes = uint64_t{4} << 40;  // 4 TiB, see sidecar.h
// A sparse object may come to less than its size; this much counts as coming when zones are chosen.
constexpr uint64_t kSparsePromiseBytes = 64 << 20;

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

struct Store::Impl {
  Impl(StoreOptions opts, CacheDir dir, std::shared_ptr<HangGuard> guard,
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

  void restore(Recovery recovery);
  Result<std::shared_ptr<ObjectFile>> make_file(const std::string& key, uint64_t size, int zone,
                                                bool whole);
  void unlink_object(const std::shared_ptr<ObjectFile>& file);
  void unlink_files(ObjectFile& file);
  // Of those that have not refused it already.
  Result<int> choose_zone(uint64_t size, const std::vector<bool>& refused) const;

  const StoreOptions options;
  CacheDir cache_dir;
  const std::shared_ptr<HangGuard> disk;  // of cache_dir itself: the catalog, the pins
  const std::vector<std::shared_ptr<Zone>> zones;
  std::map<int, UnreadZone> unread;  // constant once open
  StoreWriter writer;
  WriteBudget budget;
  Relocations relocations;
  std::atomic<uint64_t> next_generation{1};
  std::atomic<bool> closed{false};
  std::mutex close_mutex;  // one close() at a time
  // Shared while a file is made and not yet registered, so that upkeep does not take it for an
  // orphan.
  std::shared_mutex creating;

  std::mutex restored_mutex;  // guards restored
  std::vector<StoredObject> restored;
};

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() {
  close();
}

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

std::vector<StoredObject> Store::take_objects() {
  std::lock_guard lock(impl_->restored_mutex);
  return std::exchange(impl_->restored, {});
}

Result<std::shared_ptr<ObjectFile>> Store::create(const ObjectMeta& meta, bool whole) {
  if (impl_->closed) return fail(Code::kCancelled, "the cache is closed");
  if (meta.key.empty() || meta.key.size() > kMaxKeyBytes || meta.size > kMaxObjectBytes) {
    return fail(Code::kInvalid, "object " + meta.name + ": no key, or key or size too large");
  }
  impl_->writer.trim_descriptors();
  // First, so that its space is there for the new one.
  if (auto previous = impl_->writer.find(meta.key)) remove(previous);
  const uint64_t needed = whole ? meta.size : std::min(meta.size, kChunkBytes);
  if (!impl_->budget.admits(meta.key, needed)) {
    return fail(Code::kLimit, "create " + meta.name + ": today's write budget is used up");
  }
  std::shared_lock creating(impl_->creating);
  // What one zone refuses another may take.
  std::vector<bool> refused(impl_->zones.size());
  Result<std::shared_ptr<ObjectFile>> file = fail(Code::kNoSpace, "no zone");
  for (size_t tries = 0; !file && tries < impl_->zones.size(); ++tries) {
    auto zone = impl_->choose_zone(needed, refused);
    if (!zone) {
      if (tries == 0) file = tl::unexpected(zone.error());
      break;
    }
    file = impl_->make_file(meta.key, meta.size, *zone, whole);
    refused[static_cast<size_t>(*zone)] = true;
  }
  if (!file) return fail(file.error(), "create " + meta.name);
  // Another thread may have created it meanwhile; the later one stays.
  if (auto previous = impl_->writer.add(*file, impl_->next_generation++)) {
    impl_->unlink_object(previous);
  }
  return file;
}

Result<std::shared_ptr<ObjectFile>> Store::Impl::make_file(const std::string& key, uint64_t size,
                                                           int zone_index, bool whole) {
  const std::shared_ptr<Zone>& zone = zones[static_cast<size_t>(zone_index)];
  const std::string path = new_object_path(zone->path());
  const auto made = std::make_shared<NewFile>();
  const bool answered = zone->guard().run([made, path, size, whole, disk = zone->path()] {
    const auto room = Room::reserve(disk, whole ? size : 0);  // which it takes at once
    if (room) {
      make_object_file(path, size, whole, *made);
    } else {
      made->failure = room.error();
    }
    // Nobody waits for it any more.
    if (made->fd && made->owner.exchange(NewFile::kMade) == NewFile::kNobodys) {
      ::unlink(path.c_str());
    }
  });
  if (!answered) {
    if (made->owner.exchange(NewFile::kNobodys) == NewFile::kMade) {  // at the last moment
      zone->guard().run_sometime([path] { ::unlink(path.c_str()); });
    }
    return fail(Code::kDisk, "make " + path + ": the disk hangs");
  }
  if (made->failure) {
    if (made->unwell) zone->note_error();
    return tl::unexpected<Error>(*made->failure);
  }
  auto file = std::make_shared<ObjectFile>(key, path, zone_index, made->fd.release(), size, zone);
  file->promise(whole ? size : std::min(size, kSparsePromiseBytes), made->preallocated);
  return file;
}

void Store::checkpoint(const std::shared_ptr<ObjectFile>& file, const ObjectMeta& meta) {
  if (!impl_->closed) impl_->writer.checkpoint(file, meta);
}

void Store::remove(const std::shared_ptr<ObjectFile>& file) {
  if (impl_->closed || !impl_->writer.forget(file)) return;
  impl_->unlink_object(file);
}

// The file goes before its sidecar: whenever we die, nothing that was removed comes back. retire()
// comes first: the writer renames a sidecar into place and then looks at retired(), so either it
// sees the removal and unlinks, or the sidecar is there to be unlinked here.
void Store::Impl::unlink_object(const std::shared_ptr<ObjectFile>& file) {
  relocations.abandon(file->key());  // before it, see relocation.h
  (void)file->fd();                  // whoever still holds the object keeps its bytes
  unlink_files(*file);
}

void Store::Impl::unlink_files(ObjectFile& file) {
  file.retire();
  zones[static_cast<size_t>(file.zone())]->guard().run_sometime([path = file.path()] {
    ::unlink(path.c_str());
    ::unlink((path + ".meta").c_str());
  });
}

Result<std::shared_ptr<ObjectFile>> Store::begin_move(const std::shared_ptr<ObjectFile>& from,
                                                      int zone_index) {
  if (impl_->closed) return fail(Code::kCancelled, "the cache is closed");
  if (zone_index < 0 || static_cast<size_t>(zone_index) >= impl_->zones.size() ||
      zone_index == from->zone() || !from->complete()) {
    return fail(Code::kInvalid, from->path() + ": cannot be moved there");
  }
  const Zone& zone = *impl_->zones[static_cast<size_t>(zone_index)];
  if (write_budget_left() < from->size()) {
    return fail(Code::kLimit, "today's write budget is used up");
  }
  if (!zone.writable() || !zone.healthy() || zone.free_bytes() < from->size()) {
    return fail(Code::kNoSpace, zone.path() + ": no room");
  }
  // Held until relocations know the file: upkeep must not take it for an orphan.
  std::shared_lock creating(impl_->creating);
  auto copy = impl_->make_file(from->key(), from->size(), zone_index, true);
  if (!copy) return copy;
  if (auto begun = impl_->relocations.begin(from, *copy); !begun) {
    return tl::unexpected<Error>(begun.error());
  }
  return copy;
}

Result<void> Store::settle_move(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta) {
  if (!copy->complete()) return fail(Code::kInvalid, copy->path() + ": the copy has gaps");
  return impl_->relocations.settle(copy, meta, impl_->next_generation++);
}

bool Store::commit_move(const std::shared_ptr<ObjectFile>& from,
                        const std::shared_ptr<ObjectFile>& copy) {
  if (!impl_->relocations.commit(from, copy)) return false;
  impl_->unlink_object(from);
  return true;
}

void Store::discard_move(const std::shared_ptr<ObjectFile>& copy) {
  impl_->relocations.discard(copy);
}

uint64_t Store::write_budget_left() const {
  return impl_->budget.left();
}

Result<int> Store::get_write_zone(uint64_t size) {
  return impl_->choose_zone(size, std::vector<bool>(impl_->zones.size()));
}

Result<int> Store::Impl::choose_zone(uint64_t size, const std::vector<bool>& refused) const {
  std::vector<ZoneLoad> loads;
  const auto now = Zone::Clock::now();
  for (size_t i = 0; i < zones.size(); ++i) {
    const Zone& zone = *zones[i];
    loads.push_back({zone.bytes_written() + zone.promised_bytes(), zone.free_bytes(),
                     zone.writable() && !refused[i] && zone.worth_trying(now),
                     zone.endurance_bytes()});
  }
  int chosen = pick_zone(loads, size, options.wear_leveling);
  if (chosen < 0) {
    // Where no zone is well, trying is how one is found to be well again.
    for (size_t i = 0; i < loads.size(); ++i) {
      loads[i].usable = zones[i]->writable() && !refused[i] && !zones[i]->hung();
    }
    chosen = pick_zone(loads, size, options.wear_leveling);
  }
  if (chosen < 0) {
    return fail(Code::kNoSpace, "no zone has room for " + std::to_string(size) +
                                    " bytes above the 5 % reserve of its disk");
  }
  return chosen;
}

std::vector<ZoneInfo> Store::zones() const {
  std::vector<ZoneInfo> infos;
  for (const auto& zone : impl_->zones) {
    const Zone::Disk disk = zone->disk();
    infos.push_back({zone->path(), zone->tier(), zone->bytes_written(), disk.size_bytes,
                     zone->used_bytes(), health_name(zone->health()), zone->endurance_bytes(),
                     zone->free_bytes(), disk.device, zone->writable(),
                     impl_->unread.contains(zone->index())});
  }
  return infos;
}

bool Store::run_on_zone(int zone, std::function<void()> call) const {
  return impl_->zones[static_cast<size_t>(zone)]->guard().run(std::move(call));
}

bool Store::hangs() const {
  return impl_->disk->hung();
}

uint64_t Store::free_bytes() const {
  return free_above_reserve(impl_->options.cache_dir);
}

void Store::save_model(const StoredModel& model) {
  impl_->writer.save_model(model);
}

std::optional<StoredModel> Store::load_model(const std::string& repo, const std::string& revision) {
  return impl_->writer.load_model(repo, revision);
}

std::vector<StoredModel> Store::list_models() {
  return impl_->writer.list_models();
}

void Store::save_header(const std::string& id, const std::string& bytes) {
  impl_->writer.save_header(id, bytes);
}

std::optional<std::string> Store::load_header(const std::string& id) {
  return impl_->writer.load_header(id);
}

Pins Store::load_pins() {
  if (!impl_->options.persist) return {};
  auto pins = nexus::load_pins(impl_->options.cache_dir);
  if (!pins) spdlog::warn("cache: {}; nothing is pinned", pins.error().what);
  return pins.value_or(Pins());
}

Result<void> Store::save_pins(const Pins& pins) {
  if (impl_->closed) return fail(Code::kCancelled, "the cache is closed");
  if (!impl_->options.persist) return {};
  const auto saved = std::make_shared<Result<void>>();
  const bool answered = impl_->disk->run(
      [saved, dir = impl_->options.cache_dir, pins] { *saved = nexus::save_pins(dir, pins); });
  if (!answered) return fail(Code::kDisk, impl_->options.cache_dir + ": the disk hangs");
  return *saved;
}

Store::Orphans Store::remove_orphans() {
  if (impl_->closed) return {};
  std::vector<std::string> zone_paths;
  for (const auto& zone : impl_->zones) {
    // What belongs to objects in one that was not read is not known.
    if (!impl_->unread.contains(zone->index()) && !zone->hung()) zone_paths.push_back(zone->path());
  }
  // In this order: whatever is listed and no orphan is registered, or will be before `creating` is
  // ours.
  const std::vector<std::string> files = list_zone_files(zone_paths);
  std::unordered_set<std::string> live;
  {
    std::unique_lock creating(impl_->creating);
    live = impl_->writer.paths();
    impl_->relocations.add_paths(live);
  }
  Orphans orphans;
  for (const std::string& file : files) {
    if (live.contains(object_path_of(file))) continue;
    const auto bytes = remove_orphan(file);
    if (!bytes) continue;
    ++orphans.files;
    orphans.bytes += *bytes;
  }
  return orphans;
}

Result<Store::Compaction> Store::compact() {
  const std::string catalog = impl_->options.cache_dir + "/catalog.db";
  const auto bytes = [&] {
    const auto sum = std::make_shared<uint64_t>(0);
    const bool answered = impl_->disk->run(
        [sum, catalog] { *sum = file_bytes(catalog) + file_bytes(catalog + "-wal"); });
    return answered ? *sum : 0;
  };
  Compaction compaction;
  compaction.bytes_before = bytes();
  if (auto done = impl_->writer.compact(); !done) return fail(done.error(), "compact the catalog");
  compaction.bytes_after = bytes();
  return compaction;
}

Result<void> Store::forget_models() {
  return impl_->writer.forget_models();
}

void Store::flush() {
  impl_->writer.flush();
}

void Store::close() {
  std::lock_guard lock(impl_->close_mutex);
  if (impl_->closed.exchange(true)) return;
  impl_->writer.stop();
  impl_->cache_dir.release();
}

}  // namespace nexus
