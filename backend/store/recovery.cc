#include "backend/store/recovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "backend/store/disk_io.h"

namespace nexus {

namespace {

constexpr size_t kNameLength = 32;
constexpr std::string_view kSidecarSuffix = ".meta";
constexpr int kDropsLogged = 10;

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
    for (CatalogRow& row : rows) rows_.emplace(std::move(row.file), std::move(row.record));
  }

  void zone(int index, const std::string& objects_dir) {
    static constexpr char kHex[] = "0123456789abcdef";
    for (int i = 0; i < 256; ++i) {
      directory(index, objects_dir + "/" + kHex[i / 16] + kHex[i % 16]);
    }
  }

  Recovery finish() {
    // Rows that no file has used are of files that are gone.
    for (auto& [file, record] : rows_) {
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
  void directory(int zone, const std::string& path) {
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
      if (!wipe_ && object(zone, path, dir_fd, file, has_sidecar)) {
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
              bool has_sidecar) {
    std::optional<SidecarRecord> row = take_row(file);
    const bool had_row = row.has_value();
    struct stat st;
    if (::fstatat(dir_fd, file.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) {
      return drop_with_row(file, had_row, "it is not a file");
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
        if (!has_sidecar && !had_damaged_row_) return false;
        return drop_with_row(file, had_damaged_row_, "its sidecar is torn");
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
      return drop_with_row(file, had_row, "it has the wrong size");
    }
    if ((st.st_mode & 07777) != 0600) ::fchmodat(dir_fd, file.c_str(), 0600, 0);
    recovery_.max_generation = std::max(recovery_.max_generation, found.record.generation);
    uint64_t& written = recovery_.zone_bytes_written[zone];
    written = std::max(written, found.record.zone_bytes_written);
    recovery_.objects.push_back(std::move(found));
    return true;
  }

  std::optional<SidecarRecord> take_row(const std::string& file) {
    had_damaged_row_ = false;
    auto it = rows_.find(file);
    if (it == rows_.end()) return std::nullopt;
    auto record = decode_sidecar(it->second);
    rows_.erase(it);
    if (record) return std::move(*record);
    had_damaged_row_ = true;
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

  bool drop_with_row(const std::string& file, bool had_row, const char* why) {
    drop(file, why);
    if (had_row) recovery_.stale_rows.push_back(file);
    return false;
  }

  void drop(const std::string& file, const char* why) {
    if (++dropped_ <= kDropsLogged) spdlog::warn("cache: object {} dropped: {}", file, why);
  }

  const bool wipe_;
  std::unordered_map<std::string, std::string> rows_;  // file -> record
  bool had_damaged_row_ = false;                       // of the last take_row()
  int dropped_ = 0;
  Recovery recovery_;
};

}  // namespace

Recovery recover_objects(const std::vector<std::string>& zone_paths, std::vector<CatalogRow> rows,
                         bool wipe) {
  Scan scan(std::move(rows), wipe);
  for (size_t i = 0; i < zone_paths.size(); ++i) {
    scan.zone(static_cast<int>(i), zone_paths[i] + "/objects");
  }
  return scan.finish();
}

}  // namespace nexus
