#include "backend/store/store.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "backend/store/new_file.h"
#include "backend/store/room.h"
#include "backend/store/store_impl.h"
#include "backend/store/upkeep.h"

namespace nexus {

namespace {

constexpr size_t kMaxKeyBytes = 1024;
constexpr uint64_t kMaxObjectBytes = uint64_t{4} << 40;  // 4 TiB, see sidecar.h
// A sparse object may come to less than its size; this much counts as coming when zones are chosen.
constexpr uint64_t kSparsePromiseBytes = 64 << 20;

}  // namespace

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() {
  close();
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
    return hang_error("make " + path);
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
  const std::string& dir = impl_->options.cache_dir;
  return impl_->disk->get([dir, pins] { return nexus::save_pins(dir, pins); })
      .value_or(hang_error(dir));
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
    return impl_->disk
        ->get([catalog] { return file_bytes(catalog) + file_bytes(catalog + "-wal"); })
        .value_or(0);
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
