#include "backend/store/upkeep.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string_view>
#include <system_error>

namespace nexus {

namespace {
constexpr uint64_t kStatBlockBytes = 512;  // the unit of st_blocks, whatever the file system
}

std::vector<std::string> list_zone_files(const std::vector<std::string>& zone_paths) {
  namespace stdfs = std::filesystem;
  std::vector<std::string> files;
  for (const std::string& zone : zone_paths) {
    std::error_code ec;
    for (stdfs::directory_iterator dir(zone + "/objects", ec), end; !ec && dir != end;
         dir.increment(ec)) {
      std::error_code inner;
      for (stdfs::directory_iterator file(dir->path(), inner); !inner && file != end;
           file.increment(inner)) {
        files.push_back(file->path().string());
      }
    }
  }
  return files;
}

std::string object_path_of(const std::string& path) {
  for (const std::string_view suffix : {".meta", ".meta.tmp"}) {
    if (path.ends_with(suffix)) return path.substr(0, path.size() - suffix.size());
  }
  return path;
}

std::optional<uint64_t> remove_orphan(const std::string& path) {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0 || S_ISDIR(st.st_mode)) return std::nullopt;
  if (::unlink(path.c_str()) != 0) return std::nullopt;
  return static_cast<uint64_t>(st.st_blocks) * kStatBlockBytes;
}

uint64_t file_bytes(const std::string& path) {
  std::error_code ec;
  const auto bytes = std::filesystem::file_size(path, ec);
  return ec ? 0 : bytes;
}

}  // namespace nexus
