// Before any header: off_t has 64 bits here anyway, and none may make pwrite64() of the pwrite()
// below.
#undef _FILE_OFFSET_BITS
#undef _FORTIFY_SOURCE
#include "tests/crash/disk_log.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <optional>
#include <set>

namespace nexus::crash_test {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kBlock = 4096;

struct Op {
  enum Kind { kWrite, kSize, kGrow, kSync, kLink, kUnlink, kRename } kind;
  int node;             // the file, or the directory
  uint64_t offset = 0;  // kSize, kGrow: the size
  std::string bytes = {};
  std::string name = {}, to = {};
  int child = -1;  // kLink
};

// A file or a directory, as it was when the log began.
struct Node {
  bool directory = false;
  std::string bytes = {};
  std::map<std::string, int> entries = {};
};

std::string contents_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put_at(std::string& bytes, uint64_t offset, std::string_view part) {
  if (bytes.size() < offset + part.size()) bytes.resize(offset + part.size());
  bytes.replace(offset, part.size(), part);
}

bool storage(const std::string& name) {
  return !name.ends_with("-shm");
}

}  // namespace

struct DiskLog::State {
  std::string root;
  std::recursive_mutex mutex;  // held for each call and guards the rest
  std::vector<Node> nodes;     // 0: root
  std::vector<Op> ops;
  std::map<std::pair<dev_t, ino_t>, int> by_inode;

  int scan(const fs::path& path) {
    const int node = add(path, fs::is_directory(path));
    if (nodes[static_cast<size_t>(node)].directory) {
      for (const auto& entry : fs::directory_iterator(path)) {
        const int child = scan(entry.path());
        nodes[static_cast<size_t>(node)].entries[entry.path().filename()] = child;
      }
    } else {
      nodes[static_cast<size_t>(node)].bytes = contents_of(path);
    }
    return node;
  }
  int add(const std::string& path, bool directory) {
    nodes.push_back({directory});
    const int node = static_cast<int>(nodes.size()) - 1;
    struct stat st;
    if (::stat(path.c_str(), &st) == 0) by_inode[{st.st_dev, st.st_ino}] = node;
    return node;
  }
  // -1: none of ours.
  int node_of(const struct stat& st) const {
    const auto it = by_inode.find({st.st_dev, st.st_ino});
    return it == by_inode.end() ? -1 : it->second;
  }
  int node_of(int fd) const {
    struct stat st;
    return ::fstat(fd, &st) == 0 ? node_of(st) : -1;
  }
  bool ours(const char* path) const {
    return path != nullptr && std::string_view(path).starts_with(root + "/");
  }
  // The directory that holds `path`.
  int parent_of(const std::string& path) const {
    struct stat st;
    return ::stat(path.substr(0, path.rfind('/')).c_str(), &st) == 0 ? node_of(st) : -1;
  }
  static std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

  void made(const std::string& path, bool directory) {
    Op op{Op::kLink, parent_of(path)};
    op.name = name_of(path);
    op.child = add(path, directory);
    ops.push_back(std::move(op));
  }
  void wrote(int fd, uint64_t offset, const void* bytes, size_t length) {
    const int node = node_of(fd);
    if (node >= 0)
      ops.push_back({Op::kWrite, node, offset, {static_cast<const char*>(bytes), length}});
  }
  void sized(int fd, uint64_t size, Op::Kind kind = Op::kSize) {
    const int node = node_of(fd);
    if (node >= 0) ops.push_back({kind, node, size});
  }
  void synced(int fd) {
    const int node = node_of(fd);
    if (node >= 0) ops.push_back({Op::kSync, node});
  }

  using Entries = std::vector<std::map<std::string, int>>;  // by node
  Entries names_after(size_t at, const Cut& cut, const std::vector<size_t>& synced, Rng& rng) const;
  std::string bytes_after(int node, size_t at, const Cut& cut, size_t synced, Rng& rng) const;
  std::vector<size_t> last_syncs(size_t at, const Cut& cut) const;
  void make(int node, const Entries& entries, const std::string& path, size_t at, const Cut& cut,
            const std::vector<size_t>& synced, Rng& rng) const;
};

namespace {
// For the calls below. A log that ends waits for the calls under way.
std::mutex current_mutex;
std::shared_ptr<DiskLog::State> current;
std::atomic<bool> recording{false};

std::shared_ptr<DiskLog::State> current_log() {
  if (!recording.load(std::memory_order_acquire)) return nullptr;
  std::lock_guard lock(current_mutex);
  return current;
}

bool chance(double p, Rng& rng) {
  return std::uniform_real_distribution<>(0, 1)(rng) < p;
}
}  // namespace

Cut random_cut(Rng& rng) {
  constexpr double kKept[] = {0, 0.3, 0.9, 1};
  Cut cut;
  cut.bytes_kept = kKept[rng() % 4];
  cut.names_kept = kKept[rng() % 4];
  cut.names_in_order = rng() % 2 == 0;
  return cut;
}

DiskLog::DiskLog(std::string root) : state_(std::make_shared<State>()) {
  state_->root = std::move(root);
  state_->scan(state_->root);
  std::lock_guard lock(current_mutex);
  current = state_;
  recording = true;
}

DiskLog::~DiskLog() {
  stop();
}

void DiskLog::stop() {
  std::lock_guard lock(current_mutex);
  if (current != state_) return;
  recording = false;
  current.reset();
}

size_t DiskLog::now() const {
  std::lock_guard lock(state_->mutex);
  return state_->ops.size();
}

// For each node the number of operations that its last sync covers.
std::vector<size_t> DiskLog::State::last_syncs(size_t at, const Cut& cut) const {
  std::vector<size_t> synced(nodes.size());
  if (cut.syncs_lie) return synced;
  for (size_t i = 0; i < at; ++i) {
    if (ops[i].kind == Op::kSync) synced[static_cast<size_t>(ops[i].node)] = i;
  }
  return synced;
}

DiskLog::State::Entries DiskLog::State::names_after(size_t at, const Cut& cut,
                                                    const std::vector<size_t>& synced,
                                                    Rng& rng) const {
  Entries entries;
  for (const Node& node : nodes) entries.push_back(node.entries);
  const size_t survive = at - rng() % (std::min<size_t>(at, 64) + 1);  // names_in_order
  std::set<std::pair<int, std::string>> lost;  // a name that lost a change takes no later one
  for (size_t i = 0; i < at; ++i) {
    const Op& op = ops[i];
    if (op.kind != Op::kLink && op.kind != Op::kUnlink && op.kind != Op::kRename) continue;
    if (i >= synced[static_cast<size_t>(op.node)]) {
      bool kept = cut.names_in_order ? i < survive : chance(cut.names_kept, rng);
      kept = kept && !lost.contains({op.node, op.name}) && !lost.contains({op.node, op.to});
      if (!kept) {
        lost.insert({op.node, op.name});
        if (op.kind == Op::kRename) lost.insert({op.node, op.to});
        continue;
      }
    }
    auto& directory = entries[static_cast<size_t>(op.node)];
    if (op.kind == Op::kLink) directory[op.name] = op.child;
    if (op.kind == Op::kRename && directory.contains(op.name))
      directory[op.to] = directory[op.name];
    if (op.kind != Op::kLink) directory.erase(op.name);
  }
  return entries;
}

std::string DiskLog::State::bytes_after(int node, size_t at, const Cut& cut, size_t synced,
                                        Rng& rng) const {
  std::string bytes = nodes[static_cast<size_t>(node)].bytes;
  std::set<uint64_t> lost;  // blocks that lost a write take no later one
  bool size_lost = false;
  for (size_t i = 0; i < at; ++i) {
    const Op& op = ops[i];
    if (op.node != node) continue;
    const bool sure = i < synced;
    if (op.kind == Op::kSize || op.kind == Op::kGrow) {
      if (!sure && (size_lost = size_lost || !chance(cut.bytes_kept, rng))) continue;
      if (op.kind == Op::kSize || op.offset > bytes.size()) bytes.resize(op.offset);
    }
    if (op.kind != Op::kWrite) continue;
    for (uint64_t done = 0; done < op.bytes.size();) {
      const uint64_t offset = op.offset + done, block = offset / kBlock;
      const uint64_t length = std::min(kBlock - offset % kBlock, op.bytes.size() - done);
      if (sure || (!lost.contains(block) && chance(cut.bytes_kept, rng))) {
        put_at(bytes, offset, std::string_view(op.bytes).substr(done, length));
      } else {
        lost.insert(block);
      }
      done += length;
    }
  }
  return bytes;
}

void DiskLog::State::make(int node, const Entries& entries, const std::string& path, size_t at,
                          const Cut& cut, const std::vector<size_t>& synced, Rng& rng) const {
  for (const auto& [name, child] : entries[static_cast<size_t>(node)]) {
    const std::string child_path = path + "/" + name;
    if (nodes[static_cast<size_t>(child)].directory) {
      fs::create_directory(child_path);
      make(child, entries, child_path, at, cut, synced, rng);
    } else {
      std::ofstream(child_path, std::ios::binary)
          << bytes_after(child, at, cut, synced[static_cast<size_t>(child)], rng);
    }
  }
}

void DiskLog::rebuild(size_t at, const Cut& cut, Rng& rng, const std::string& target) const {
  const std::vector<size_t> synced = state_->last_syncs(at, cut);
  const State::Entries entries = state_->names_after(at, cut, synced, rng);
  state_->make(0, entries, target, at, cut, synced, rng);
}

std::string DiskLog::difference() const {
  std::lock_guard lock(state_->mutex);
  Rng rng;
  const size_t at = state_->ops.size();
  const Cut none{1, 1};
  const std::vector<size_t> synced(state_->nodes.size(), at);
  const State::Entries entries = state_->names_after(at, none, synced, rng);
  const auto compare = [&](const auto& self, int node, const fs::path& path) -> std::string {
    std::set<std::string> there;
    for (const auto& entry : fs::directory_iterator(path)) there.insert(entry.path().filename());
    for (const auto& [name, child] : entries[static_cast<size_t>(node)]) {
      if (there.erase(name) == 0) return path / name;
      std::string found;
      if (state_->nodes[static_cast<size_t>(child)].directory) {
        found = self(self, child, path / name);
      } else if (storage(name) &&
                 contents_of(path / name) != state_->bytes_after(child, at, none, at, rng)) {
        found = path / name;
      }
      if (!found.empty()) return found;
    }
    return there.empty() ? "" : path / *there.begin();
  };
  return compare(compare, 0, state_->root);
}

}  // namespace nexus::crash_test

// --- The C library's calls ---

namespace {

using nexus::crash_test::current_log;

template <typename F>
F* real(F* /*ours*/, const char* name) {
  return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}

// Makes the call and, with the log held, says what it did if it succeeded.
template <typename Call, typename Note>
auto logged(const Call& call, const Note& note) -> decltype(call()) {
  const auto log = current_log();
  if (!log) return call();
  std::lock_guard lock(log->mutex);
  const auto result = call();
  const int err = errno;
  if (result >= 0) note(*log, result);
  errno = err;
  return result;
}

template <typename Call>
int opened(const char* path, int flags, const Call& call) {
  const auto log = (flags & (O_CREAT | O_TRUNC)) != 0 ? current_log() : nullptr;
  if (!log || !log->ours(path)) return call();
  std::lock_guard lock(log->mutex);
  const bool there = ::access(path, F_OK) == 0;
  const int fd = call();
  const int err = errno;
  if (fd >= 0 && !there) log->made(path, false);
  if (fd >= 0 && there && (flags & O_TRUNC) != 0) log->sized(fd, 0);
  errno = err;
  return fd;
}

mode_t mode_argument(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

// NOLINTBEGIN: these names are the C library's.
#define NEXUS_OPEN(name)                                                 \
  extern "C" int name(const char* path, int flags, ...) {                \
    va_list arguments;                                                   \
    va_start(arguments, flags);                                          \
    const mode_t mode = mode_argument(flags, arguments);                 \
    va_end(arguments);                                                   \
    static const auto next = real(&name, #name);                         \
    return opened(path, flags, [&] { return next(path, flags, mode); }); \
  }
#define NEXUS_OPENAT(name)                                                   \
  extern "C" int name(int at, const char* path, int flags, ...) {            \
    va_list arguments;                                                       \
    va_start(arguments, flags);                                              \
    const mode_t mode = mode_argument(flags, arguments);                     \
    va_end(arguments);                                                       \
    static const auto next = real(&name, #name);                             \
    return opened(path, flags, [&] { return next(at, path, flags, mode); }); \
  }
#define NEXUS_PWRITE(name)                                                                       \
  extern "C" ssize_t name(int fd, const void* bytes, size_t length, off_t offset) {              \
    static const auto next = real(&name, #name);                                                 \
    return logged([&] { return next(fd, bytes, length, offset); },                               \
                  [&](auto& log, ssize_t n) {                                                    \
                    log.wrote(fd, static_cast<uint64_t>(offset), bytes, static_cast<size_t>(n)); \
                  });                                                                            \
  }
#define NEXUS_FTRUNCATE(name)                                                           \
  extern "C" int name(int fd, off_t size) noexcept {                                    \
    static const auto next = real(&name, #name);                                        \
    return logged([&] { return next(fd, size); },                                       \
                  [&](auto& log, int) { log.sized(fd, static_cast<uint64_t>(size)); }); \
  }
#define NEXUS_FALLOCATE(name)                                               \
  extern "C" int name(int fd, int mode, off_t offset, off_t length) {       \
    static const auto next = real(&name, #name);                            \
    return logged([&] { return next(fd, mode, offset, length); },           \
                  [&](auto& log, int) {                                     \
                    if (mode == 0) {                                        \
                      log.sized(fd, static_cast<uint64_t>(offset + length), \
                                nexus::crash_test::Op::kGrow);              \
                    }                                                       \
                  });                                                       \
  }
#define NEXUS_SYNC(name)                                                              \
  extern "C" int name(int fd) {                                                       \
    static const auto next = real(&name, #name);                                      \
    return logged([&] { return next(fd); }, [&](auto& log, int) { log.synced(fd); }); \
  }

NEXUS_OPEN(open)
NEXUS_OPEN(open64)
NEXUS_OPENAT(openat)
NEXUS_OPENAT(openat64)
NEXUS_PWRITE(pwrite)
NEXUS_PWRITE(pwrite64)
NEXUS_FTRUNCATE(ftruncate)
NEXUS_FTRUNCATE(ftruncate64)
NEXUS_FALLOCATE(fallocate)
NEXUS_FALLOCATE(fallocate64)
NEXUS_SYNC(fsync)
NEXUS_SYNC(fdatasync)

extern "C" ssize_t write(int fd, const void* bytes, size_t length) {
  static const auto next = real(&write, "write");
  const auto at = [&] { return ::lseek(fd, 0, SEEK_CUR); };
  return logged([&] { return next(fd, bytes, length); },
                [&](auto& log, ssize_t n) {
                  if (log.node_of(fd) < 0) return;
                  log.wrote(fd, static_cast<uint64_t>(at() - n), bytes, static_cast<size_t>(n));
                });
}

extern "C" int mkdir(const char* path, mode_t mode) noexcept {
  static const auto next = real(&mkdir, "mkdir");
  return logged([&] { return next(path, mode); },
                [&](auto& log, int) {
                  if (log.ours(path)) log.made(path, true);
                });
}

extern "C" int unlink(const char* path) noexcept {
  static const auto next = real(&unlink, "unlink");
  return logged(
      [&] { return next(path); },
      [&](auto& log, int) {
        if (!log.ours(path)) return;
        log.ops.push_back(
            {nexus::crash_test::Op::kUnlink, log.parent_of(path), 0, {}, log.name_of(path)});
      });
}

extern "C" int rename(const char* from, const char* to) noexcept {
  static const auto next = real(&rename, "rename");
  return logged([&] { return next(from, to); },
                [&](auto& log, int) {
                  if (!log.ours(from)) return;
                  log.ops.push_back({nexus::crash_test::Op::kRename,
                                     log.parent_of(from),
                                     0,
                                     {},
                                     log.name_of(from),
                                     log.name_of(to)});
                });
}
// NOLINTEND
