#include "fs/edge.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <future>
#include <memory>
#include <mutex>
#include <utility>

#include "fs/errno_of.h"
#include "fs/ring_channel.h"

namespace nexus::fs {

namespace {

constexpr unsigned kRequestBytes = 1
                                   << 20;  // what one read request may ask; the kernel's limit too
constexpr int kReplyThreads = 2;
constexpr int kRingThreads = 4;
constexpr std::chrono::seconds kNotificationWait{2};

// Asks for a feature where kernel and libfuse have it.
[[maybe_unused]] bool want_feature(fuse_conn_info* connection, unsigned feature) {
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  return fuse_set_feature_flag(connection, feature);
#else
  if (!(connection->capable & feature)) return false;
  connection->want |= feature;
  return true;
#endif
}

void refuse_feature(fuse_conn_info* connection, unsigned feature) {
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  fuse_unset_feature_flag(connection, feature);
#else
  connection->want &= ~feature;
#endif
}

}  // namespace

Edge::Edge(FsOptions options, std::unique_ptr<Models> models, Cache& cache)
    : options_(std::move(options)),
      uid_(::geteuid()),
      gid_(::getegid()),
      cache_(cache),
      tree_(std::move(models)),
      inodes_(tree_.root()),
      limits_(options_.limits, uid_),
      aux_("fuse-aux"),
      notify_("fuse-notify"),
      replies_("fuse-reply", kReplyThreads),
      parking_(limits_, aux_) {
  if (options_.fuse_io_uring) {
    ring_ = std::make_unique<RingChannel>(
        kRequestBytes, static_cast<unsigned>(options_.fuse_io_uring_queue_depth), kRingThreads);
  }
}

Edge::~Edge() {
  stop();
}

void Edge::attach(fuse_session* session, std::string mountpoint) {
  session_ = session;
  mountpoint_ = std::move(mountpoint);
}

void Edge::close() {
  stopped_ = true;
  parking_.close();
}

void Edge::stop_replies() {
  close();
  aux_.stop();
  replies_.stop();
  // Answers that the cache's, the registry's and the models' threads are giving.
  parking_.drain();
}

void Edge::settle_notifications() {
  auto settled = std::make_shared<std::promise<void>>();
  auto answer = settled->get_future();
  notify_.post([settled = std::move(settled)] { settled->set_value(); });
  answer.wait_for(kNotificationWait);
}

void Edge::stop() {
  stop_replies();
  notify_.stop();
  // Handles that the kernel never released: their opens and read-ahead end with the mount.
  std::lock_guard lock(handles_mutex_);
  files_.clear();
  directories_.clear();
}

void Edge::init(fuse_conn_info* connection) {
  connection->max_write = kRequestBytes;
  connection->max_read = kRequestBytes;
  connection->max_background = options_.max_background;
  connection->congestion_threshold = options_.congestion_threshold;
  want_feature(connection, FUSE_CAP_ASYNC_READ);
  want_feature(connection, FUSE_CAP_PARALLEL_DIROPS);
  refuse_feature(connection, FUSE_CAP_AUTO_INVAL_DATA);
  refuse_feature(connection, FUSE_CAP_WRITEBACK_CACHE);
#ifdef FUSE_CAP_OVER_IO_URING
  refuse_feature(connection, FUSE_CAP_OVER_IO_URING);  // libfuse's own; ours: fs/ring_channel.h
#endif

#if NEXUS_FUSE_PASSTHROUGH
  direct_io_ = options_.direct_io && want_feature(connection, FUSE_CAP_DIRECT_IO_ALLOW_MMAP);
  bool pass = false;
  std::string reason = "switched off";
  if (options_.passthrough) {
    pass = want_feature(connection, FUSE_CAP_PASSTHROUGH);
    reason = pass ? "" : "the kernel does not offer it (Linux 6.9 and newer)";
  }
  // Objects, and files of a local origin, may lie on overlayfs; the price is that no overlayfs can
  // lie on this mount.
  if (pass) connection->max_backing_stack_depth = FUSE_BACKING_STACKED_OVER;
#else
  const bool pass = false;
  const std::string reason = "built with libfuse older than 3.17";
#endif
  passthrough_.set_negotiated(pass, fuse_session_fd(session_), reason);
  notify_.post([this] { tune_read_ahead(); });
}

// The kernel's read-ahead window is min()ed with 128 KiB while it processes INIT, so it is set
// after the first request behind INIT was answered. Root only; else the default stays.
void Edge::tune_read_ahead() {
  struct stat st;
  if (options_.read_ahead_kb <= 0 || stopped_ || ::stat(mountpoint_.c_str(), &st) != 0) return;
  const std::string path = "/sys/class/bdi/" + std::to_string(major(st.st_dev)) + ":" +
                           std::to_string(minor(st.st_dev)) + "/read_ahead_kb";
  std::FILE* file = std::fopen(path.c_str(), "we");
  if (!file) {
    spdlog::debug("{} cannot be written; the kernel's read-ahead stays as it is", path);
    return;
  }
  std::fprintf(file, "%d\n", options_.read_ahead_kb);
  std::fclose(file);
}

Asker Edge::asker_of(const std::shared_ptr<Parked>& parked) {
  Asker asker;
  asker.cancellation = parked->cancellation;
  asker.admit = [self = shared_from_this(), uid = parked->uid]() -> Result<std::shared_ptr<void>> {
    if (!self->limits_.begin_resolution(uid, std::chrono::steady_clock::now())) {
      return fail(Code::kLimit, "uid " + std::to_string(uid) + " looks up too many new models");
    }
    return std::shared_ptr<void>(nullptr,
                                 [self, uid](void*) { self->limits_.end_resolution(uid); });
  };
  return asker;
}

bool Edge::may_see(const Node& node, uid_t uid) const {
  return !node.restricted() || limits_.privileged(uid);
}

struct stat Edge::attributes_of(const Node& node) const {
  struct stat st {};
  const bool restricted = node.restricted();
  st.st_ino = node.inode();
  if (node.directory()) {
    st.st_mode = S_IFDIR | (restricted ? 0500 : 0555);
  } else {
    st.st_mode = S_IFREG | (restricted ? 0400 : 0444);
    st.st_size = static_cast<off_t>(node.size());
    st.st_blocks = static_cast<blkcnt_t>((node.size() + 511) / 512);  // tar -S takes 0 for a hole
  }
  st.st_nlink = 1;
  st.st_uid = uid_;
  st.st_gid = gid_;
  st.st_blksize = kRequestBytes;
  const time_t mtime = node.model ? static_cast<time_t>(node.model->mtime_s()) : 0;
  st.st_mtim.tv_sec = st.st_ctim.tv_sec = st.st_atim.tv_sec = mtime;
  return st;
}

double Edge::entry_ttl(const Inode& inode, const Node& node) const {
  // Each path walk asks again, and so does each user.
  if (node.restricted()) return 0;
  const bool inside_model = node.model && !node.entry.path.empty();
  if (!inside_model || !node.entry.error.empty()) return options_.directory_ttl_s;
  // A refresh leaves model directories alone (they are pinned), but not what hangs off another
  // place.
  const auto parent = inodes_.get(inode.parent);
  const bool pinned = parent && parent->node()->kind == NodeKind::kModelDir;
  return pinned ? options_.file_ttl_s : options_.directory_ttl_s;
}

fuse_entry_param Edge::entry_of(const Inode& inode, const Node& node) const {
  fuse_entry_param entry{};
  entry.ino = inode.nodeid;
  entry.attr = attributes_of(node);
  entry.entry_timeout = entry_ttl(inode, node);
  entry.attr_timeout = entry.entry_timeout;
  return entry;
}

InodePtr Edge::count_lookup(uint64_t parent, const std::string& name, const NodePtr& node) {
  bool wants_passthrough = false;
  if (node->entry.object && passthrough_.on()) {
    const auto file = cache_.ready_file(*node->entry.object);
    wants_passthrough = file && passthrough_.may_serve(*file);
  }
  return inodes_.look_up(parent, name, node, [&](const Inode& inode) {
    if (inode.io.opens == 0) return false;
    return inode.io.retired || (wants_passthrough && inode.io.mode == IoMode::kPages);
  });
}

void Edge::reply_error(fuse_req_t request, const std::string& subject, const Error& error) {
  const int number = errno_of(error);
  // What a path simply does not have, and who went away, is no trouble.
  if (number != ENOENT && number != EINTR) {
    log_.warn(subject.empty() ? "/" : subject,
              std::string(code_name(error.code)) + ": " + error.what);
  }
  fuse_reply_err(request, number);
}

void Edge::fail_parked(const std::shared_ptr<Parked>& parked, const NodePtr& node, const Error& error) {
  const auto answer = [self = shared_from_this(), parked, node](const Error& why) {
    self->replies_.post([self, parked, node, why] {
      if (const auto right = self->parking_.finish(parked)) self->reply_error(parked->request, node->path, why);
    });
  };
  if (error.code != Code::kStale || !node->model) return answer(error);
  const uint64_t step = parked->cancellation->begin_step();
  // Weak: it is kept in what it would keep.
  parked->cancellation->set(step, [this, weak = std::weak_ptr<Parked>(parked), node] {
    if (const auto waiting = weak.lock()) fail_parked(waiting, node, {Code::kCancelled, "interrupted"});
  });
  tree_.renew(node->model, [answer, error] { answer(error); });
}

void Edge::lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  const auto directory = inodes_.get(parent);
  if (!directory) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = directory->node();
  if (!may_see(*node, fuse_req_ctx(request)->uid)) return (void)fuse_reply_err(request, EACCES);
  const auto parked = parking_.park(request);
  if (!parked) return;
  tree_.lookup(
      node, name, asker_of(parked),
      [self = shared_from_this(), parked, parent, name = std::string(name)](Result<NodePtr> found) {
        const auto right = self->parking_.finish(parked);
        if (!right) return;
        if (!found) return self->reply_error(parked->request, name, found.error());
        const Node& result = **found;
        const bool own_directory = result.directory() && result.entry.path.empty();
        if (!own_directory && !self->may_see(result, parked->uid)) {
          return (void)fuse_reply_err(parked->request, EACCES);
        }
        const auto inode = self->count_lookup(parent, name, *found);
        const fuse_entry_param entry = self->entry_of(*inode, result);
        // Interrupted meanwhile: the kernel does not know the nodeid and will not forget it.
        if (fuse_reply_entry(parked->request, &entry) != 0) {
          self->inodes_.forget(inode->nodeid, 1);
        }
      });
}

void Edge::getattr(fuse_req_t request, fuse_ino_t ino) {
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  const struct stat st = attributes_of(*node);
  const double ttl = node->directory() ? options_.directory_ttl_s : options_.file_ttl_s;
  fuse_reply_attr(request, &st, node->restricted() ? 0 : ttl);
}

void Edge::access(fuse_req_t request, fuse_ino_t ino, int mask) {
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  int error = 0;
  if (!may_see(*node, fuse_req_ctx(request)->uid)) {
    error = EACCES;
  } else if (mask & W_OK) {
    error = EROFS;
  } else if ((mask & X_OK) && !node->directory()) {
    error = EACCES;
  }
  fuse_reply_err(request, error);
}

void Edge::statfs(fuse_req_t request) {
  const CacheStats stats = cache_.stats();
  constexpr uint64_t kBlock = 4096;
  struct statvfs result {};
  result.f_bsize = result.f_frsize = kBlock;
  result.f_blocks = stats.max_disk_cache_bytes / kBlock;
  const uint64_t used = std::min(stats.disk_cache_bytes, stats.max_disk_cache_bytes);
  result.f_bfree = result.f_bavail = (stats.max_disk_cache_bytes - used) / kBlock;
  result.f_files = inodes_.size();
  result.f_namemax = 255;
  fuse_reply_statfs(request, &result);
}

void Edge::invalidate_entry(const Inode& inode) {
  if (inode.nodeid == Inodes::kRoot || stopped_) return;
  const int result = fuse_lowlevel_notify_inval_entry(session_, inode.parent, inode.name.c_str(),
                                                      inode.name.size());
  if (result != 0 && result != -ENOENT && result != -ENOTDIR) {
    spdlog::debug("the kernel keeps the entry {}: {}", inode.name, -result);
  }
}

void Edge::object_changed(const std::shared_ptr<Object>& object) {
  notify_.post([this, object] {
    const bool complete = object->resident();
    for (const auto& inode : inodes_.of_object(*object)) {
      if (stopped_) return;
      bool entry_is_old = false;
      bool pages_are_old = false;
      {
        std::lock_guard lock(inode->io_mutex);
        if (complete) {
          entry_is_old =
              inode->io.opens > 0 && inode->io.mode == IoMode::kPages && passthrough_.on();
        } else {
          entry_is_old = inode->io.retired = inode->io.mode == IoMode::kPassthrough;
          pages_are_old = inode->io.mode != IoMode::kPassthrough;
        }
      }
      // No origin brings it again: the path leads elsewhere, or nowhere.
      entry_is_old = entry_is_old || (!complete && is_put_key(object->spec().key));
      if (entry_is_old) invalidate_entry(*inode);
      // Dropped, perhaps because its bytes were wrong: the page cache must not go on serving them.
      if (pages_are_old) fuse_lowlevel_notify_inval_inode(session_, inode->nodeid, 0, 0);
    }
  });
}

void Edge::model_refreshed(const std::string& repo, const std::string& revision) {
  notify_.post([this, repo, revision] {
    const auto affected = inodes_.select([&](const Inode& inode, const Node& node) {
      if (!node.model || node.model->repo() != repo || node.model->revision() != revision) {
        return false;
      }
      const auto parent = inodes_.get(inode.parent);
      if (!parent) return false;
      // What lies inside a model's directory, or below its commit, is pinned to the commit.
      const NodeKind kind = parent->node()->kind;
      return kind != NodeKind::kModelDir && kind != NodeKind::kHubSnapshots;
    });
    for (const auto& inode : affected) invalidate_entry(*inode);
  });
}

void Edge::file_replaced(const std::string& repo, const std::string& path) {
  notify_.post([this, repo, path] {
    const auto affected = inodes_.select([&](const Inode&, const Node& node) {
      return node.model && node.model->repo() == repo && node.entry.path == path;
    });
    for (const auto& inode : affected) invalidate_entry(*inode);
  });
}

MountStatus Edge::status() const {
  MountStatus status;
  status.mountpoint = mountpoint_;
  struct utsname system;
  if (::uname(&system) == 0) status.kernel = system.release;
  status.libfuse = fuse_pkgversion();
  status.passthrough = passthrough_.on();
  status.passthrough_reason = passthrough_.reason();
  status.complete_mode = status.passthrough ? "passthrough" : "page-cache";
  status.incomplete_mode = direct_io_ ? "direct-io" : "page-cache";
  if (!direct_io_) {
    status.direct_io_reason =
        !options_.direct_io ? "switched off"
        : NEXUS_FUSE_PASSTHROUGH
            ? "the kernel does not offer mmap of such files (Linux 6.6 and newer)"
            : "built with libfuse older than 3.17";
  }
  const RingStatus ring = ring_ ? ring_->status() : RingStatus{false, "switched off", 0};
  status.fuse_io_uring = ring.on;
  status.fuse_io_uring_reason = ring.reason;
  status.fuse_io_uring_requests = ring.requests;
  status.parked = limits_.parked();
  status.nodeids = inodes_.size();
  status.opens_passthrough = opens_passthrough_;
  status.opens_pages = opens_pages_;
  status.opens_stale = opens_stale_;
  std::lock_guard lock(handles_mutex_);
  status.open_files = files_.size();
  return status;
}

}  // namespace nexus::fs
