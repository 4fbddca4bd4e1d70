// The catalog: one row for every object, the wear of every zone, model listings and shard headers,
// in SQLite (WAL). Nothing else in this module knows SQL.
//
// A row's record is the object's sidecar (see sidecar.h), so the catalog is a cache of the sidecars
// that is read in one go at start; only models and headers exist nowhere else, and those the origin
// can give again. Hence synchronous=NORMAL: a power cut may lose the last rows, never the file's
// consistency, and the sidecars, which are synced, fill the gap.
//
// Thread safety: commit() from one thread at a time. The loads may be called from any thread and do
// not wait for a commit: they have a connection of their own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/store.h"

namespace nexus {

struct CatalogRow {
  std::string file;  // <32 hex>, the name of the object's file
  int zone = 0;
  std::string key, name;  // for people with an sqlite3 shell; the truth is in the record
  std::string record;
};

// The zones' wear when a day began (write_budget.h).
struct CatalogDay {
  int64_t day = 0;  // since 1970, UTC
  std::map<int, uint64_t> zone_bytes_written;
};

// Everything one transaction changes.
struct CatalogBatch {
  std::vector<CatalogRow> put;
  std::vector<std::string> erase;  // by file
  std::map<int, uint64_t> zone_bytes_written;
  std::shared_ptr<const CatalogDay> day;
  std::vector<std::shared_ptr<const StoredModel>> models;
  std::vector<std::pair<std::string, std::shared_ptr<const std::string>>> headers;

  bool empty() const {
    return put.empty() && erase.empty() && zone_bytes_written.empty() && !day && models.empty() &&
           headers.empty();
  }
};

class Catalog {
 public:
  // kCorrupt when the file is not a catalog of this version or, but for its objects, which
  // objects() finds out, not sound; kNoSpace, kDisk.
  static Result<std::unique_ptr<Catalog>> open(const std::string& path);
  // For when the disk refuses one; it lives as long as the process.
  static Result<std::unique_ptr<Catalog>> open_in_memory();
  // The damaged file is kept as `path`.corrupt for whoever wants to know; its journal goes.
  static void move_aside(const std::string& path);
  ~Catalog();

  // Where that shows that the file is damaged, the next open() is kCorrupt.
  Result<void> commit(const CatalogBatch& batch);
  // Forgets objects, models and headers; wear and the day are kept, for they are the drive's.
  Result<void> clear();
  Result<void> clear_models();  // models and headers alone
  // Gives back what deleted rows took.
  Result<void> compact();

  // Sorted by file. kCorrupt: move_aside().
  Result<std::vector<CatalogRow>> objects();
  Result<std::map<int, uint64_t>> zone_bytes_written();
  Result<std::optional<CatalogDay>> day();
  Result<std::optional<StoredModel>> load_model(const std::string& repo,
                                                const std::string& revision);
  Result<std::vector<StoredModel>> list_models();  // without the snapshots
  Result<std::optional<std::string>> load_header(const std::string& id);

 private:
  struct Connections;
  explicit Catalog(std::unique_ptr<Connections> connections);
  static Result<std::unique_ptr<Catalog>> open(const std::string& path, bool in_memory);
  std::unique_ptr<Connections> connections_;
};

}  // namespace nexus
