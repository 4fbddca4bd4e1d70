// The insides of Store: store_open.cc opens it, store.cc does the rest.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "backend/store/cache_dir.h"
#include "backend/store/catalog.h"
#include "backend/store/hang_guard.h"
#include "backend/store/recovery.h"
#include "backend/store/relocation.h"
#include "backend/store/store.h"
#include "backend/store/write_budget.h"
#include "backend/store/writer.h"
#include "backend/store/zones.h"

namespace nexus {

struct Store::Impl {
  Impl(StoreOptions opts, CacheDir dir, std::shared_ptr<HangGuard> guard,
       std::vector<std::shared_ptr<Zone>> opened, std::unique_ptr<Catalog> catalog,
       std::optional<CatalogDay> day);

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

}  // namespace nexus
