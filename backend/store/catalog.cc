#include "backend/store/catalog.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <mutex>
#include <utility>

#include "backend/store/disk_io.h"
#include "backend/store/sqlite.h"

namespace nexus {

namespace {

constexpr const char* kVersion =
    "1";  // PRAGMA user_version; another one is rebuilt from the sidecars

constexpr const char* kSchema =
    "CREATE TABLE objects(file TEXT PRIMARY KEY, zone INTEGER NOT NULL, key TEXT NOT NULL,"
    " name TEXT NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE zones(zone INTEGER PRIMARY KEY, bytes_written INTEGER NOT NULL);"
    "CREATE TABLE models(repo TEXT, revision TEXT, commit_id TEXT NOT NULL, snapshot BLOB NOT NULL,"
    " PRIMARY KEY(repo, revision));"
    "CREATE TABLE headers(id TEXT PRIMARY KEY, bytes BLOB NOT NULL);"
    "PRAGMA user_version=1;";
// Came later; who does not know it leaves it alone.
constexpr const char* kDaySchema =
    "CREATE TABLE IF NOT EXISTS write_day(zone INTEGER PRIMARY KEY, day INTEGER NOT NULL,"
    " bytes_before INTEGER NOT NULL)";

Result<void> set_up(Database& database, bool in_memory) {
  if (!in_memory) {
    auto mode = database.query_text("PRAGMA journal_mode=WAL");
    if (!mode) return tl::unexpected(mode.error());
    if (*mode != "wal") return fail(Code::kDisk, "catalog: no WAL on this file system");
  }
  if (auto ok = database.exec("PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit=67108864");
      !ok) {
    return ok;
  }
  auto version = database.query_text("PRAGMA user_version");
  if (!version) return tl::unexpected(version.error());
  if (*version == "0") {
    auto tables = database.query_text("SELECT count(*) FROM sqlite_master");
    if (!tables) return tl::unexpected(tables.error());
    if (*tables != "0") return fail(Code::kCorrupt, "catalog: some other database");
    if (auto begun = database.exec("BEGIN IMMEDIATE"); !begun) return begun;
    if (auto made = database.exec(kSchema); !made) return made;
    if (auto made = database.exec(kDaySchema); !made) return made;
    return database.exec("COMMIT");
  }
  if (*version != kVersion) return fail(Code::kCorrupt, "catalog: version " + *version);
  // Not of the objects: each of their rows is read at the start anyway, and has a hash of its own.
  for (const char* pragma : {"PRAGMA quick_check('models')", "PRAGMA quick_check('headers')",
                             "PRAGMA quick_check('zones')"}) {
    auto check = database.query_text(pragma);
    if (!check) return tl::unexpected(check.error());
    if (*check == "ok") continue;
    std::replace(check->begin(), check->end(), '\n', ' ');
    return fail(Code::kCorrupt, "catalog: " + *check);
  }
  return database.exec(kDaySchema);
}

// It exists when the catalog is to be made anew.
std::string condemned(const std::string& path) {
  return path + ".damaged";
}

// SQLite makes its files with 0644 & ~umask, and the journals with the mode of the database.
Result<void> make_private_file(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd && (errno == EISDIR || errno == ELOOP)) {
    return fail(Code::kCorrupt, path + " is not a file");
  }
  if (!fd) return disk_error(errno, "open " + path);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return disk_error(errno, "stat " + path);
  if (!S_ISREG(st.st_mode)) return fail(Code::kCorrupt, path + " is not a file");
  if (::fchmod(fd.get(), 0600) != 0) return disk_error(errno, "chmod " + path);
  for (const char* suffix : {"-wal", "-shm"}) ::chmod((path + suffix).c_str(), 0600);
  return {};
}

}  // namespace

struct Catalog::Connections {
  Connections(Database opened, std::string file)
      : path(std::move(file)), writer(std::move(opened)) {}
  // Held while the returned connection is used. Without a reader (in memory) everybody shares one.
  std::pair<std::unique_lock<std::mutex>, Database*> for_reading() {
    if (reader) return {std::unique_lock(reader_mutex), &*reader};
    return {std::unique_lock(writer_mutex), &writer};
  }
  template <typename Rows, typename Add>
  Result<Rows> read_all(const char* sql, const Add& add);

  const std::string path;                 // "" in memory
  std::mutex writer_mutex, reader_mutex;  // each guards its connection
  Database writer;
  std::optional<Database> reader;
};

Catalog::Catalog(std::unique_ptr<Connections> connections) : connections_(std::move(connections)) {}
Catalog::~Catalog() {
  // The last connection to close must be one that may write: it folds the journal into the
  // database.
  connections_->reader.reset();
}

Result<std::unique_ptr<Catalog>> Catalog::open(const std::string& path) {
  return open(path, false);
}

Result<std::unique_ptr<Catalog>> Catalog::open_in_memory() {
  return open(":memory:", true);
}

Result<std::unique_ptr<Catalog>> Catalog::open(const std::string& path, bool in_memory) {
  constexpr int kFlags = SQLITE_OPEN_NOMUTEX;  // each connection has a mutex of ours
  if (!in_memory && ::access(condemned(path).c_str(), F_OK) == 0) {
    return fail(Code::kCorrupt, "catalog: was found to be damaged when it was written");
  }
  if (!in_memory) {
    if (auto made = make_private_file(path); !made) return tl::unexpected(made.error());
  }
  auto writer = Database::open(path, kFlags | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  if (!writer) return tl::unexpected(writer.error());
  if (auto ready = set_up(*writer, in_memory); !ready) return tl::unexpected(ready.error());
  auto connections = std::make_unique<Connections>(std::move(*writer), in_memory ? "" : path);
  if (!in_memory) {
    auto reader = Database::open(path, kFlags | SQLITE_OPEN_READONLY);
    if (!reader) return tl::unexpected(reader.error());
    if (auto set = reader->exec("PRAGMA cell_size_check=ON"); !set) {
      return tl::unexpected(set.error());
    }
    connections->reader.emplace(std::move(*reader));
  }
  return std::unique_ptr<Catalog>(new Catalog(std::move(connections)));
}

void Catalog::move_aside(const std::string& path) {
  if (std::rename(path.c_str(), (path + ".corrupt").c_str()) != 0) {
    // Somebody's directory in our place, or a read-only disk: the store goes on without a file.
    ::unlink(path.c_str());
  }
  for (const char* suffix : {"-wal", "-shm"}) ::unlink((path + suffix).c_str());
  ::unlink(condemned(path).c_str());
}

Result<void> Catalog::commit(const CatalogBatch& batch) {
  std::lock_guard lock(connections_->writer_mutex);
  Database& database = connections_->writer;
  if (auto begun = database.exec("BEGIN IMMEDIATE"); !begun) return begun;

  const auto for_each = [&](const char* sql, const auto& items, const auto& bind) -> Result<void> {
    if (items.empty()) return {};
    auto statement = database.prepare(sql);
    if (!statement) return tl::unexpected(statement.error());
    for (const auto& item : items) {
      bind(*statement, item);
      if (auto done = statement->run(); !done) return done;
    }
    return {};
  };
  const auto apply = [&]() -> Result<void> {
    auto done = for_each("INSERT OR REPLACE INTO objects VALUES(?,?,?,?,?)", batch.put,
                         [](Statement& s, const CatalogRow& row) {
                           s.bind(1, row.file);
                           s.bind(2, int64_t{row.zone});
                           s.bind(3, row.key);
                           s.bind(4, row.name);
                           s.bind_blob(5, row.record);
                         });
    if (!done) return done;
    done = for_each("DELETE FROM objects WHERE file=?", batch.erase,
                    [](Statement& s, const std::string& file) { s.bind(1, file); });
    if (!done) return done;
    done = for_each("INSERT OR REPLACE INTO zones VALUES(?,?)", batch.zone_bytes_written,
                    [](Statement& s, const auto& zone) {
                      s.bind(1, int64_t{zone.first});
                      s.bind(2, static_cast<int64_t>(zone.second));
                    });
    if (!done) return done;
    if (batch.day) {
      if (auto cleared = database.exec("DELETE FROM write_day"); !cleared) return cleared;
      done = for_each("INSERT INTO write_day VALUES(?,?,?)", batch.day->zone_bytes_written,
                      [&](Statement& s, const auto& zone) {
                        s.bind(1, int64_t{zone.first});
                        s.bind(2, batch.day->day);
                        s.bind(3, static_cast<int64_t>(zone.second));
                      });
      if (!done) return done;
    }
    done = for_each("INSERT OR REPLACE INTO models VALUES(?,?,?,?)", batch.models,
                    [](Statement& s, const std::shared_ptr<const StoredModel>& model) {
                      s.bind(1, model->repo);
                      s.bind(2, model->revision);
                      s.bind(3, model->commit);
                      s.bind_blob(4, model->snapshot);
                    });
    if (!done) return done;
    done = for_each("INSERT OR REPLACE INTO headers VALUES(?,?)", batch.headers,
                    [](Statement& s, const auto& header) {
                      s.bind(1, header.first);
                      s.bind_blob(2, *header.second);
                    });
    if (!done) return done;
    return database.exec("COMMIT");
  };
  auto result = apply();
  if (result) return result;
  // Damage that no reading shows, as in the list of free pages. While it is open its name must
  // stay.
  if (database.damaged() && !connections_->path.empty()) {
    UniqueFd(::open(condemned(connections_->path).c_str(), O_CREAT | O_CLOEXEC, 0600));
  }
  // Some errors (a full disk) have rolled back already; then this one says so and is not news.
  (void)database.exec("ROLLBACK");
  return result;
}

Result<void> Catalog::clear() {
  std::lock_guard lock(connections_->writer_mutex);
  return connections_->writer.exec(
      "BEGIN IMMEDIATE; DELETE FROM objects; DELETE FROM models; DELETE FROM headers; COMMIT");
}

Result<void> Catalog::clear_models() {
  std::lock_guard lock(connections_->writer_mutex);
  return connections_->writer.exec(
      "BEGIN IMMEDIATE; DELETE FROM models; DELETE FROM headers; COMMIT");
}

Result<void> Catalog::compact() {
  std::lock_guard lock(connections_->writer_mutex);
  // The journal holds the compacted database until it is folded in.
  return connections_->writer.exec("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
}

// The rows of a SELECT without parameters, gathered one by one. Fails as a whole.
template <typename Rows, typename Add>
Result<Rows> Catalog::Connections::read_all(const char* sql, const Add& add) {
  auto [lock, database] = for_reading();
  auto select = database->prepare(sql);
  if (!select) return tl::unexpected(select.error());
  Rows rows;
  for (;;) {
    auto row = select->step();
    if (!row) return tl::unexpected(row.error());
    if (!*row) return rows;
    add(rows, *select);
  }
}

Result<std::vector<CatalogRow>> Catalog::objects() {
  using Rows = std::vector<CatalogRow>;
  return connections_->read_all<Rows>(
      "SELECT file, zone, record FROM objects ORDER BY file", [](Rows& rows, Statement& row) {
        rows.push_back({row.text(0), static_cast<int>(row.integer(1)), "", "", row.text(2)});
      });
}

Result<std::map<int, uint64_t>> Catalog::zone_bytes_written() {
  using Zones = std::map<int, uint64_t>;
  return connections_->read_all<Zones>(
      "SELECT zone, bytes_written FROM zones", [](Zones& zones, Statement& row) {
        zones[static_cast<int>(row.integer(0))] = static_cast<uint64_t>(row.integer(1));
      });
}

Result<std::optional<CatalogDay>> Catalog::day() {
  using Day = std::optional<CatalogDay>;
  return connections_->read_all<Day>("SELECT zone, day, bytes_before FROM write_day",
                                     [](Day& day, Statement& row) {
                                       if (!day) day.emplace();
                                       day->day = row.integer(1);
                                       day->zone_bytes_written[static_cast<int>(row.integer(0))] =
                                           static_cast<uint64_t>(row.integer(2));
                                     });
}

Result<std::optional<StoredModel>> Catalog::load_model(const std::string& repo,
                                                       const std::string& revision) {
  auto [lock, database] = connections_->for_reading();
  auto select =
      database->prepare("SELECT commit_id, snapshot FROM models WHERE repo=? AND revision=?");
  if (!select) return tl::unexpected(select.error());
  select->bind(1, repo);
  select->bind(2, revision);
  auto row = select->step();
  if (!row) return tl::unexpected(row.error());
  if (!*row) return std::nullopt;
  return StoredModel{repo, revision, select->text(0), select->text(1)};
}

Result<std::vector<StoredModel>> Catalog::list_models() {
  using Models = std::vector<StoredModel>;
  return connections_->read_all<Models>(
      "SELECT repo, revision, commit_id FROM models ORDER BY 1, 2",
      [](Models& models, Statement& row) {
        models.push_back({row.text(0), row.text(1), row.text(2), ""});
      });
}

Result<std::optional<std::string>> Catalog::load_header(const std::string& id) {
  auto [lock, database] = connections_->for_reading();
  auto select = database->prepare("SELECT bytes FROM headers WHERE id=?");
  if (!select) return tl::unexpected(select.error());
  select->bind(1, id);
  auto row = select->step();
  if (!row) return tl::unexpected(row.error());
  if (!*row) return std::nullopt;
  return select->text(0);
}

}  // namespace nexus
