#include "backend/origin/local_dir.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "backend/origin/digest.h"
#include "backend/origin/file_reader.h"
#include "backend/origin/hub_cache.h"

namespace nexus {

namespace {

constexpr size_t kFilesMax = 200'000;
constexpr size_t kDepthMax = 32;

struct Directory {
  dev_t device;
  ino_t inode;
};

class Walk {
 public:
  explicit Walk(std::string root) : root_(std::move(root)) {}

  Result<Snapshot> run() {
    struct stat info {};
    if (stat(root_.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
      return fail(Code::kNotFound, "list " + root_ + ": no such directory");
    }
    snapshot_.restricted = !readable_by_all(root_);
    above_.push_back({info.st_dev, info.st_ino});
    if (auto walked = enter(""); !walked) return tl::unexpected(walked.error());
    sanitize_files(snapshot_);
    snapshot_.commit = listing_digest(snapshot_.files);
    return std::move(snapshot_);
  }

 private:
  // `relative` is "" or ends with '/'.
  Result<void> enter(const std::string& relative) {
    const std::string directory = root_ + "/" + relative;
    DIR* stream = opendir(directory.c_str());
    if (stream == nullptr) {
      const std::string why = std::strerror(errno);
      if (relative.empty()) return fail(Code::kDisk, "list " + root_ + ": " + why);
      snapshot_.complaints.push_back("'" + relative + "': " + why);
      return {};
    }
    std::vector<std::string> names;
    while (const dirent* entry = readdir(stream)) names.emplace_back(entry->d_name);
    closedir(stream);
    std::sort(names.begin(), names.end());
    for (const auto& name : names) {
      // The history and the download client's notes are no part of the model.
      if (name == "." || name == ".." || name == ".git" || name == ".cache") continue;
      if (auto taken = take(relative + name); !taken) return taken;
    }
    return {};
  }

  Result<void> take(const std::string& path) {
    struct stat info {};
    const std::string full = root_ + "/" + path;
    if (stat(full.c_str(), &info) != 0) {
      complain(path, std::strerror(errno));
    } else if (S_ISDIR(info.st_mode)) {
      const bool loop = std::any_of(above_.begin(), above_.end(), [&](const Directory& d) {
        return d.device == info.st_dev && d.inode == info.st_ino;
      });
      if (loop || above_.size() >= kDepthMax) {
        complain(path, loop ? "a symlink to a directory above it" : "too deep");
        return {};
      }
      above_.push_back({info.st_dev, info.st_ino});
      auto walked = enter(path + "/");
      above_.pop_back();
      return walked;
    } else if (!S_ISREG(info.st_mode)) {
      complain(path, "not a regular file");
    } else {
      if (snapshot_.files.size() >= kFilesMax) {
        return fail(Code::kLimit, "list " + root_ + ": more than 200,000 files");
      }
      if ((info.st_mode & S_IROTH) == 0) snapshot_.restricted = true;
      snapshot_.mtime_s = std::max<int64_t>(snapshot_.mtime_s, info.st_mtime);
      OriginFile file;
      file.path = path;
      file.size = static_cast<uint64_t>(info.st_size);
      file.etag = local_etag(info);
      file.local_path = full;
      snapshot_.files.push_back(std::move(file));
    }
    return {};
  }

  void complain(const std::string& path, const char* why) {
    if (snapshot_.complaints.size() < 100 && valid_model_path(path)) {
      snapshot_.complaints.push_back("'" + path + "': " + why);
    }
  }

  const std::string root_;
  Snapshot snapshot_;
  std::vector<Directory> above_;  // from the root to where the walk is: symlinks may lead back
};

class LocalOrigin final : public Origin {
 public:
  LocalOrigin(std::string directory, ThreadPool& pool)
      : directory_(std::move(directory)), pool_(pool) {}

  std::string describe() const override { return directory_; }

  void load(const std::string& repo, const std::string& revision,
            std::function<void(Result<Snapshot>)> done) override {
    pool_.post([directory = directory_, repo, revision, done = std::move(done)] {
      auto snapshot = Walk(directory).run();
      if (snapshot) {
        snapshot->repo = repo;
        snapshot->revision = revision;
      }
      done(std::move(snapshot));
    });
  }

  std::shared_ptr<Transfer> read(const Snapshot&, ReadRequest request) override {
    return read_local_file(std::move(request), pool_);
  }

  bool reachable() const override { return true; }

 private:
  const std::string directory_;
  ThreadPool& pool_;
};

}  // namespace

std::shared_ptr<Origin> make_local_origin(std::string directory, ThreadPool& pool) {
  while (directory.size() > 1 && directory.ends_with('/')) directory.pop_back();
  return std::make_shared<LocalOrigin>(std::move(directory), pool);
}

}  // namespace nexus
