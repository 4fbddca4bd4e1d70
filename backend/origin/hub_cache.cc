#include "backend/origin/hub_cache.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace nexus {

namespace fs = std::filesystem;

namespace {

constexpr size_t kFilesMax = 200'000;

fs::path model_directory(const std::string& hub_cache, const std::string& repo) {
  std::string name = "models--" + repo;
  const size_t slash = name.find('/');
  if (slash != std::string::npos) name.replace(slash, 1, "--");
  return fs::path(hub_cache) / name;
}

bool plain_hex(const std::string& text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string read_ref(const fs::path& path) {
  std::ifstream stream(path);
  char text[65] = {};
  stream.read(text, 64);
  std::string commit(text, static_cast<size_t>(stream.gcount()));
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == ' ')) commit.pop_back();
  return commit;
}

}  // namespace

bool readable_by_all(const std::string& path) {
  std::error_code error;
  fs::path real = fs::canonical(path, error);
  if (error) return false;
  struct stat info {};
  if (stat(real.c_str(), &info) != 0 || (info.st_mode & S_IROTH) == 0) return false;
  if (S_ISDIR(info.st_mode) && (info.st_mode & S_IXOTH) == 0) return false;
  while (real.has_relative_path()) {
    real = real.parent_path();
    if (stat(real.c_str(), &info) != 0 || (info.st_mode & S_IXOTH) == 0) return false;
  }
  return true;
}

void attach_hub_cache(const std::string& hub_cache, Snapshot& snapshot) {
  const fs::path directory =
      model_directory(hub_cache, snapshot.repo) / "snapshots" / snapshot.commit;
  for (auto& file : snapshot.files) {
    const fs::path path = directory / file.path;
    struct stat info {};
    if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    if (static_cast<uint64_t>(info.st_size) == file.size) file.local_path = path.string();
  }
}

Result<Snapshot> load_hub_cache(const std::string& hub_cache, const std::string& repo,
                                const std::string& revision) {
  const std::string where = "the hub cache " + hub_cache;
  const std::string rev = revision.empty() ? "main" : revision;
  if (!valid_repo_name(repo) || !valid_model_path(rev)) {
    return fail(Code::kNotFound, where + " has no " + repo + " at " + rev);
  }
  const fs::path model = model_directory(hub_cache, repo);
  std::string commit = read_ref(model / "refs" / rev);
  if (commit.empty() && rev.find('/') == std::string::npos) commit = rev;
  std::error_code error;
  const fs::path root = model / "snapshots" / commit;
  if (commit.empty() || commit.find('/') != std::string::npos || !valid_model_path(commit) ||
      !fs::is_directory(root, error)) {
    return fail(Code::kNotFound, where + " has no " + repo + " at " + rev);
  }

  Snapshot snapshot;
  snapshot.repo = repo;
  snapshot.revision = revision;
  snapshot.commit = commit;
  // The cache does not say whether a model is gated; its permissions say who may read it.
  snapshot.restricted = !readable_by_all(root.string());
  auto walk = fs::recursive_directory_iterator(root, error);
  for (; !error && walk != fs::recursive_directory_iterator(); walk.increment(error)) {
    struct stat info {};
    if (stat(walk->path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    if (snapshot.files.size() >= kFilesMax) return fail(Code::kLimit, where + ": too many files");
    OriginFile file;
    file.path = walk->path().lexically_relative(root).generic_string();
    file.size = static_cast<uint64_t>(info.st_size);
    file.local_path = walk->path().string();
    std::error_code no_link;
    const std::string blob = fs::read_symlink(walk->path(), no_link).filename().string();
    if (plain_hex(blob, 64)) file.sha256 = blob;
    if (plain_hex(blob, 64) || plain_hex(blob, 40)) file.etag = blob;
    snapshot.mtime_s = std::max<int64_t>(snapshot.mtime_s, info.st_mtime);
    snapshot.files.push_back(std::move(file));
  }
  if (error) return fail(Code::kDisk, where + ": " + error.message());
  sanitize_files(snapshot);
  return snapshot;
}

}  // namespace nexus
