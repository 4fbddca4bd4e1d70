#include "backend/store/recovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "backend/store/disk_io.h"

namespace nexus {

namespace {

constexpr size_t kNameLength = 32;
constexpr std::string_view kSidecarSuffix = ".meta";
constexpr int kDropsLogged = 10;
// Most of a start over a cold page cache is waiting for directories and inodes.
constexpr int kScanThreads = 4;
constexpr size_t kDirectoriesOfZone = 256;
constexpr size_t kInspectedAtOnce = 64;  // a disk that is slow must get through them in time

bool is_object_name(std::string_view name) {
  return name.size() == kNameLength && std::ranges::all_of(name, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

// The names in one directory.
struct Listing {
  struct File {
    std::string name;
    bool regular = true;  // false: something else, or the file system does not say
  };
  std::vector<File> files;
  std::unordered_set<std::string> sidecars;  // by the file's name
  std::vector<std::string> garbage;
};

// Both run on a thread of the zone's, which a hanging disk may keep: they own what they touch.
void read_directory(const std::string& path, Listing& listing) {
  std::unique_ptr<DIR, CloseDir> dir(::opendir(path.c_str()));
  if (!dir) {
    if (errno != ENOENT) {
      spdlog::warn("cache: {}: {}", path, std::generic_category().message(errno));
    }
    return;
  }
  struct stat st;
  const int dir_fd = ::dirfd(dir.get());
  if (::fstat(dir_fd, &st) == 0 && (st.st_mode & 07777) != 0700) ::fchmod(dir_fd, 0700);
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (is_object_name(name)) {
      listing.files.push_back({std::string(name), entry->d_type == DT_REG});
    } else if (name.ends_with(kSidecarSuffix) &&
               is_object_name(name.substr(0, name.size() - kSidecarSuffix.size()))) {
      listing.sidecars.emplace(name.substr(0, kNameLength));
    } else {
      listing.garbage.emplace_back(name);
    }
  }
}

// What the directory does not say of a file.
struct Inspection {
  std::string path;
  bool read_sidecar = false;
  bool regular = false;
  uint64_t size = 0;
  std::optional<SidecarRecord> sidecar = {};
};

void inspect(Inspection& file) {
  struct stat st;
  if (::lstat(file.path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return;
  file.regular = true;
  file.size = static_cast<uint64_t>(st.st_size);
  if ((st.st_mode & 07777) != 0600) ::chmod(file.path.c_str(), 0600);
  if (!file.read_sidecar) return;
  auto bytes = read_file(AT_FDCWD, file.path + std::string(kSidecarSuffix), kSidecarMaxBytes);
  if (!bytes) return;
  if (auto record = decode_sidecar(*bytes)) file.sidecar = std::move(*record);
}

class Scan {
 public:
  Scan(const std::vector<std::shared_ptr<Zone>>& zones, std::vector<CatalogRow> rows, bool wipe)
      : zones_(zones),
        wipe_(wipe),
        unread_(zones.size()),
        rows_(std::move(rows)),
        used_(rows_.size()) {
    recovery_.objects.reserve(rows_.size());
  }

  void run() {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      static constexpr char kHex[] = "0123456789abcdef";
      for (size_t n = next++; n < zones_.size() * kDirectoriesOfZone; n = next++) {
        // The zones in turn, so that one that hangs does not hold up all threads for long.
        const size_t zone = n % zones_.size(), i = n / zones_.size();
        if (unread_[zone]) continue;
        Recovery part;
        directory(zone, zones_[zone]->path() + "/objects/" + kHex[i / 16] + kHex[i % 16], part);
        add(std::move(part));
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < kScanThreads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    // After all was read: a disk that is slow to remove files can be read all the same.
    for (Garbage& garbage : garbage_) {
      zones_[garbage.zone]->guard().run_sometime([garbage = std::move(garbage)] {
        for (const std::string& name : garbage.names) {
          ::unlink((garbage.directory + "/" + name).c_str());
        }
      });
    }
  }

  Recovery finish() {
    for (size_t zone = 0; zone < zones_.size(); ++zone) {
      if (unread_[zone]) recovery_.unread[static_cast<int>(zone)] = {};
    }
    // Rows that no file has used are of files that are gone.
    for (size_t i = 0; i < rows_.size(); ++i) {
      const CatalogRow& row = rows_[i];
      if (used_[i]) continue;
      if (auto unread = recovery_.unread.find(row.zone); unread != recovery_.unread.end()) {
        count_unread(row, unread->second);
        continue;
      }
      if (!wipe_) drop(row.file, "its file is missing");
      recovery_.stale_rows.push_back(row.file);
    }
    drop_older_twins();
    if (dropped_ > kDropsLogged) {
      spdlog::warn("cache: {} more objects dropped", dropped_ - kDropsLogged);
    }
    return std::move(recovery_);
  }

 private:
  struct Garbage {
    size_t zone = 0;
    std::string directory;
    std::vector<std::string> names;
  };
  struct Unclear {
    std::string name;
    std::optional<SidecarRecord> row;
    bool damaged_row = false, has_sidecar = false;
  };

  // True: the call has returned. False: the zone's disk hangs, and it is not asked again.
  bool on_zone(size_t zone, std::function<void()> call) {
    if (!unread_[zone] && zones_[zone]->guard().run(std::move(call))) return true;
    unread_[zone] = true;
    return false;
  }

  void count_unread(const CatalogRow& row, UnreadZone& unread) {
    const auto record = decode_sidecar(row.record);
    if (!record) return;
    note(row.zone, *record, recovery_);
    ++unread.objects;
    unread.bytes += std::min(record->meta.size, record->present_chunks() * kChunkBytes);
  }

  static void note(int zone, const SidecarRecord& record, Recovery& part) {
    part.max_generation = std::max(part.max_generation, record.generation);
    uint64_t& written = part.zone_bytes_written[zone];
    written = std::max(written, record.zone_bytes_written);
  }

  void add(Recovery part) {
    std::lock_guard lock(mutex_);
    std::move(part.objects.begin(), part.objects.end(), std::back_inserter(recovery_.objects));
    std::move(part.stale_rows.begin(), part.stale_rows.end(),
              std::back_inserter(recovery_.stale_rows));
    recovery_.max_generation = std::max(recovery_.max_generation, part.max_generation);
    for (const auto& [zone, written] : part.zone_bytes_written) {
      uint64_t& most = recovery_.zone_bytes_written[zone];
      most = std::max(most, written);
    }
  }

  void directory(size_t zone, const std::string& path, Recovery& part) {
    const auto listing = std::make_shared<Listing>();
    if (!on_zone(zone, [path, listing] { read_directory(path, *listing); })) return;
    std::vector<std::string> garbage = std::move(listing->garbage);
    std::vector<Unclear> unclear;
    for (Listing::File& file : listing->files) {
      if (wipe_) {
        garbage.push_back(std::move(file.name));
        continue;
      }
      Unclear one{std::move(file.name), std::nullopt, false, false};
      one.row = take_row(one.name, &one.damaged_row);
      one.has_sidecar = listing->sidecars.contains(one.name);
      if (!file.regular || !one.row || !one.row->complete()) {
        unclear.push_back(std::move(one));
        continue;
      }
      listing->sidecars.erase(one.name);
      RecoveredObject found;
      found.sidecar_current = one.has_sidecar;
      found.record = std::move(*one.row);
      keep(zone, path + "/" + one.name, std::move(found), part);
    }
    for (size_t at = 0; at < unclear.size(); at += kInspectedAtOnce) {
      const auto some = std::make_shared<std::vector<Inspection>>();
      const size_t end = std::min(unclear.size(), at + kInspectedAtOnce);
      for (size_t i = at; i < end; ++i) {
        const bool complete = unclear[i].row && unclear[i].row->complete();
        some->push_back({path + "/" + unclear[i].name, unclear[i].has_sidecar && !complete});
      }
      const bool answered = on_zone(zone, [some] {
        for (Inspection& file : *some) inspect(file);
      });
      if (!answered) {  // also what is garbage there the next start finds
        for (size_t i = at; i < unclear.size(); ++i) untake_row(unclear[i].name);
        return;
      }
      for (size_t i = at; i < end; ++i) {
        if (object(zone, unclear[i], (*some)[i - at], part)) {
          listing->sidecars.erase(unclear[i].name);
        } else {
          garbage.push_back(unclear[i].name);
        }
      }
    }
    // Files before sidecars, as in remove(). A directory in our place is not ours to delete.
    for (const std::string& name : listing->sidecars) {
      garbage.push_back(name + std::string(kSidecarSuffix));
    }
    if (garbage.empty()) return;
    std::lock_guard lock(mutex_);
    garbage_.push_back({zone, path, std::move(garbage)});
  }

  // True: it survives.
  bool object(size_t zone, Unclear& file, Inspection& seen, Recovery& part) {
    const bool had_row = file.row.has_value();
    if (!seen.regular) return drop_with_row(part, file.name, had_row, "it is not a file");
    RecoveredObject found;
    std::optional<SidecarRecord>&row = file.row, &sidecar = seen.sidecar;
    if (row && row->complete()) {
      found.sidecar_current = file.has_sidecar;
      found.record = std::move(*row);
    } else if (!row && !sidecar) {
      // Mostly a file that was being filled when the daemon died: nothing to tell anybody.
      if (!file.has_sidecar && !file.damaged_row) return false;
      return drop_with_row(part, file.name, file.damaged_row, "its sidecar is torn");
    } else if (row && sidecar && row->present_chunks() >= sidecar->present_chunks()) {
      found.record = std::move(*row);  // equal: the row may know of later hits
    } else if (sidecar) {
      found.row_current = false;
      found.record = std::move(*sidecar);
    } else {
      found.sidecar_current = false;
      found.record = std::move(*row);
    }
    if (seen.size != found.record.meta.size) {
      return drop_with_row(part, file.name, had_row, "it has the wrong size");
    }
    keep(zone, std::move(seen.path), std::move(found), part);
    return true;
  }

  static void keep(size_t zone, std::string path, RecoveredObject found, Recovery& part) {
    found.zone = static_cast<int>(zone);
    found.path = std::move(path);
    note(found.zone, found.record, part);
    part.objects.push_back(std::move(found));
  }

  std::optional<SidecarRecord> take_row(const std::string& file, bool* damaged) {
    const auto row = row_of(file);
    if (!row || used_[*row].exchange(true)) return std::nullopt;
    auto record = decode_sidecar(rows_[*row].record);
    if (record) return std::move(*record);
    *damaged = true;
    return std::nullopt;
  }
  void untake_row(const std::string& file) {
    if (const auto row = row_of(file)) used_[*row] = false;
  }
  std::optional<size_t> row_of(const std::string& file) const {
    const auto before = [](const CatalogRow& row, const std::string& name) {
      return row.file < name;
    };
    const auto it = std::lower_bound(rows_.begin(), rows_.end(), file, before);
    if (it == rows_.end() || it->file != file) return std::nullopt;
    return static_cast<size_t>(it - rows_.begin());
  }

  // A crash between the making of an object and the removal of the one it replaces leaves both.
  void drop_older_twins() {
    std::unordered_map<std::string_view, size_t> newest;
    newest.reserve(recovery_.objects.size());
    std::vector<size_t> losers;
    auto& objects = recovery_.objects;
    for (size_t i = 0; i < objects.size(); ++i) {
      auto [it, fresh] = newest.emplace(objects[i].record.meta.key, i);
      if (fresh) continue;
      const bool newer = objects[i].record.generation > objects[it->second].record.generation;
      losers.push_back(newer ? std::exchange(it->second, i) : i);
    }
    std::sort(losers.begin(), losers.end());
    for (auto it = losers.rbegin(); it != losers.rend(); ++it) {
      const std::string path = objects[*it].path;
      zones_[static_cast<size_t>(objects[*it].zone)]->guard().run_sometime([path] {
        ::unlink(path.c_str());
        ::unlink((path + std::string(kSidecarSuffix)).c_str());
      });
      recovery_.stale_rows.push_back(path.substr(path.size() - kNameLength));
      objects.erase(objects.begin() + static_cast<ptrdiff_t>(*it));
    }
  }

  bool drop_with_row(Recovery& part, const std::string& file, bool had_row, const char* why) {
    drop(file, why);
    if (had_row) part.stale_rows.push_back(file);
    return false;
  }

  void drop(const std::string& file, const char* why) {
    if (++dropped_ <= kDropsLogged) spdlog::warn("cache: object {} dropped: {}", file, why);
  }

  const std::vector<std::shared_ptr<Zone>>& zones_;
  const bool wipe_;
  std::vector<std::atomic<bool>> unread_;  // zones whose disk hangs
  const std::vector<CatalogRow> rows_;     // sorted by file
  std::vector<std::atomic<bool>> used_;    // a file was found for the row
  std::atomic<int> dropped_{0};
  std::mutex mutex_;  // guards the rest while threads run
  std::vector<Garbage> garbage_;
  Recovery recovery_;
};

}  // namespace

Recovery recover_objects(const std::vector<std::shared_ptr<Zone>>& zones,
                         std::vector<CatalogRow> rows, bool wipe) {
  Scan scan(zones, std::move(rows), wipe);
  scan.run();
  return scan.finish();
}

}  // namespace nexus
