#include "backend/store/recovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
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

bool is_object_name(std::string_view name) {
  return name.size() == kNameLength &&
         name.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

class Scan {
 public:
  Scan(std::vector<CatalogRow> rows, bool wipe) : wipe_(wipe) {
    rows_.reserve(rows.size());
    for (CatalogRow& row : rows) {
      rows_.try_emplace(std::move(row.file)).first->second.record = std::move(row.record);
    }
  }

  void zones(const std::vector<std::string>& zone_paths) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      static constexpr char kHex[] = "0123456789abcdef";
      for (size_t n = next++; n < zone_paths.size() * kDirectoriesOfZone; n = next++) {
        const size_t zone = n / kDirectoriesOfZone, i = n % kDirectoriesOfZone;
        Recovery part;
        directory(static_cast<int>(zone),
                  zone_paths[zone] + "/objects/" + kHex[i / 16] + kHex[i % 16], part);
        add(std::move(part));
      }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < kScanThreads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  }

  Recovery finish() {
    // Rows that no file has used are of files that are gone.
    for (auto& [file, row] : rows_) {
      if (row.used) continue;
      if (!wipe_) drop(file, "its file is missing");
      recovery_.stale_rows.push_back(file);
    }
    drop_older_twins();
    if (dropped_ > kDropsLogged) {
      spdlog::warn("cache: {} more objects dropped", dropped_ - kDropsLogged);
    }
    return std::move(recovery_);
  }

 private:
  struct Row {
    std::string record;
    std::atomic<bool> used{false};
  };

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

  void directory(int zone, const std::string& path, Recovery& part) {
    std::unique_ptr<DIR, CloseDir> dir(::opendir(path.c_str()));
    if (!dir) {
      if (errno != ENOENT) {
        spdlog::warn("cache: {}: {}", path, std::generic_category().message(errno));
      }
      return;
    }
    const int dir_fd = ::dirfd(dir.get());
    struct stat st;
    if (::fstat(dir_fd, &st) == 0 && (st.st_mode & 07777) != 0700) ::fchmod(dir_fd, 0700);
    std::vector<std::string> files;
    std::unordered_set<std::string> sidecars;
    std::vector<std::string> garbage;
    while (const dirent* entry = ::readdir(dir.get())) {
      const std::string_view name = entry->d_name;
      if (name == "." || name == "..") continue;
      if (is_object_name(name)) {
        files.emplace_back(name);
      } else if (name.ends_with(kSidecarSuffix) &&
                 is_object_name(name.substr(0, name.size() - kSidecarSuffix.size()))) {
        sidecars.emplace(name.substr(0, kNameLength));
      } else {
        garbage.emplace_back(name);
      }
    }
    for (const std::string& file : files) {
      const bool has_sidecar = sidecars.contains(file);
      if (!wipe_ && object(zone, path, dir_fd, file, has_sidecar, part)) {
        sidecars.erase(file);
      } else {
        garbage.push_back(file);
      }
    }
    // Files before sidecars, as in remove(). A directory in our place is not ours to delete.
    for (const std::string& name : garbage) ::unlinkat(dir_fd, name.c_str(), 0);
    for (const std::string& name : sidecars) {
      ::unlinkat(dir_fd, (name + std::string(kSidecarSuffix)).c_str(), 0);
    }
  }

  // True: it survives.
  bool object(int zone, const std::string& dir, int dir_fd, const std::string& file,
              bool has_sidecar, Recovery& part) {
    bool had_damaged_row = false;
    std::optional<SidecarRecord> row = take_row(file, &had_damaged_row);
    const bool had_row = row.has_value();
    struct stat st;
    if (::fstatat(dir_fd, file.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) {
      return drop_with_row(part, file, had_row, "it is not a file");
    }
    RecoveredObject found;
    found.zone = zone;
    found.path = dir + "/" + file;
    if (row && row->complete()) {
      found.sidecar_current = has_sidecar;
      found.record = std::move(*row);
    } else {
      std::optional<SidecarRecord> sidecar;
      if (has_sidecar) sidecar = read_sidecar(dir_fd, file);
      if (!row && !sidecar) {
        // Mostly a file that was being filled when the daemon died: nothing to tell anybody.
        if (!has_sidecar && !had_damaged_row) return false;
        return drop_with_row(part, file, had_damaged_row, "its sidecar is torn");
      }
      if (row && sidecar && row->present_chunks() >= sidecar->present_chunks()) {
        found.record = std::move(*row);  // equal: the row may know of later hits
      } else if (sidecar) {
        found.row_current = false;
        found.record = std::move(*sidecar);
      } else {
        found.sidecar_current = false;
        found.record = std::move(*row);
      }
    }
    if (static_cast<uint64_t>(st.st_size) != found.record.meta.size) {
      return drop_with_row(part, file, had_row, "it has the wrong size");
    }
    if ((st.st_mode & 07777) != 0600) ::fchmodat(dir_fd, file.c_str(), 0600, 0);
    part.max_generation = std::max(part.max_generation, found.record.generation);
    uint64_t& written = part.zone_bytes_written[zone];
    written = std::max(written, found.record.zone_bytes_written);
    part.objects.push_back(std::move(found));
    return true;
  }

  std::optional<SidecarRecord> take_row(const std::string& file, bool* damaged) {
    auto it = rows_.find(file);
    if (it == rows_.end() || it->second.used.exchange(true)) return std::nullopt;
    auto record = decode_sidecar(it->second.record);
    if (record) return std::move(*record);
    *damaged = true;
    return std::nullopt;
  }

  static std::optional<SidecarRecord> read_sidecar(int dir_fd, const std::string& file) {
    auto bytes = read_file(dir_fd, file + std::string(kSidecarSuffix), kSidecarMaxBytes);
    if (!bytes) return std::nullopt;
    auto record = decode_sidecar(*bytes);
    if (!record) return std::nullopt;
    return std::move(*record);
  }

  // A crash between the making of an object and the removal of the one it replaces leaves both.
  void drop_older_twins() {
    std::unordered_map<std::string, size_t> newest;
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
      ::unlink(path.c_str());
      ::unlink((path + std::string(kSidecarSuffix)).c_str());
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

  const bool wipe_;
  std::unordered_map<std::string, Row>
      rows_;  // by file; as it is while threads run, but for Row::used
  std::atomic<int> dropped_{0};
  std::mutex mutex_;  // guards recovery_ while threads run
  Recovery recovery_;
};

}  // namespace

Recovery recover_objects(const std::vector<std::string>& zone_paths, std::vector<CatalogRow> rows,
                         bool wipe) {
  Scan scan(std::move(rows), wipe);
  scan.zones(zone_paths);
  return scan.finish();
}

}  // namespace nexus
