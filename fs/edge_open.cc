// Opening: which way an open file is read, and the rule that one nodeid is read one way only.
#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "fs/edge.h"
#include "fs/errno_of.h"

namespace nexus::fs {

namespace {

constexpr size_t kModelsWalked = 256;

// Whether the object is read only once all of it is here and checked: whole objects by definition,
// resident ones because the check is all that is missing, local files because they need no fetch.
bool open_waits_for(const Object& object) {
  return object.spec().whole || object.resident() || !object.spec().local_path.empty();
}

}  // namespace

std::shared_ptr<ObjectUse> Edge::use_of(const std::shared_ptr<Object>& object) {
  std::lock_guard lock(uses_mutex_);
  auto& slot = uses_[object.get()];
  auto use = slot.lock();
  if (!use) {
    if (walked_.size() > kModelsWalked) walked_.clear();
    auto& walked = walked_[object->spec().model];
    if (!walked) walked = std::make_shared<prefetch::WalkedBytes>(0);
    use = std::make_shared<ObjectUse>(cache_, object, walked);
    slot = use;
  }
  if (uses_.size() > 1024) {
    std::erase_if(uses_, [](const auto& item) { return item.second.expired(); });
  }
  return use;
}

void Edge::open(fuse_req_t request, fuse_ino_t ino, const fuse_file_info& info) {
  const fuse_ctx* context = fuse_req_ctx(request);
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  if (!may_see(*node, context->uid)) return (void)fuse_reply_err(request, EACCES);
  if ((info.flags & O_ACCMODE) != O_RDONLY || (info.flags & O_TRUNC)) {
    return (void)fuse_reply_err(request, EROFS);
  }
  if (node->directory()) return (void)fuse_reply_err(request, EISDIR);
  if (!node->entry.error.empty()) {
    log_.warn(node->path, node->entry.error);
    return (void)fuse_reply_err(request, EIO);
  }
  const auto object = node->size() > 0 ? node->entry.object : nullptr;
  auto handle = std::make_unique<FileHandle>(inode, node, object ? use_of(object) : nullptr);
  if (!object) return finish_open(request, context->pid, info, std::move(handle), nullptr);
  handle->layers = layers_of(*node);
  const auto layers = handle->layers;
  const auto file = cache_.ready_file(*object);
  if (file) layer_opened(layers.get(), true);
  if (file || !open_waits_for(*object)) {
    return finish_open(request, context->pid, info, std::move(handle), file);
  }
  const auto parked = parking_.park(request);
  if (!parked) return;
  const bool here = object->resident();
  const uint64_t step = parked->cancellation->begin_step();
  // Shared, because a std::function is copied: the handle is handed on by the one who answers.
  auto waiting = std::make_shared<std::unique_ptr<FileHandle>>(std::move(handle));
  const uint64_t ticket = cache_.prepare(object, [self = shared_from_this(), parked, waiting, info](
                                                     Result<std::shared_ptr<ObjectFile>> prepared) {
    if (self->parking_.answered(*parked)) return;
    if (!prepared) return self->fail_parked(parked, (*waiting)->node, prepared.error());
    // Registering a backing and answering are system calls: not on the cache's thread.
    self->replies_.post([self, parked, waiting, info, prepared = std::move(prepared)] {
      const auto right = self->parking_.finish(parked);
      if (!right) return;
      self->finish_open(parked->request, parked->tid, info, std::move(*waiting), *prepared);
    });
  });
  parked->cancellation->set(step, [this, ticket] { cache_.cancel(ticket); });
  layer_opened(layers.get(), here);  // last: the reader's own fetch is first in line
}

// `file` is null for what is read through the daemon: an incomplete object, a literal.
void Edge::finish_open(fuse_req_t request, pid_t tid, fuse_file_info info,
                       std::unique_ptr<FileHandle> handle, std::shared_ptr<ObjectFile> file) {
  Inode& inode = *handle->inode;
  bool passed = false;
  {
    std::lock_guard lock(inode.io_mutex);
    InodeIo& io = inode.io;
    // Where memory cannot be passed through, the disk's file may.
    if (file && handle->use && !passthrough_.may_serve(*file)) {
      if (auto on_disk = handle->use->object->file()) file = std::move(on_disk);
    }
    const bool wanted = file && passthrough_.may_serve(*file);
    if (io.opens > 0 && (io.retired || (wanted && io.mode == IoMode::kPages)) &&
        inodes_.may_answer_stale(handle->node->inode(), tid, std::chrono::steady_clock::now())) {
      // The path leads to another nodeid by now: the kernel walks it again.
      ++opens_stale_;
      fuse_reply_err(request, ESTALE);
      return;
    }
    // With handles open the mode is settled: a passed one shares its backing, even when the object
    // was dropped since (same bytes); the others go on through the daemon.
    if (io.opens == 0) io.mode = IoMode::kUnset;
    if (io.mode == IoMode::kPassthrough || (io.mode == IoMode::kUnset && wanted)) {
      passed = passthrough_.acquire(io, file);
    }
    io.mode = passed ? IoMode::kPassthrough : IoMode::kPages;
    ++io.opens;
#if NEXUS_FUSE_PASSTHROUGH
    if (passed) info.backing_id = io.backing_id;
#endif
  }
  if (passed) {
    ++opens_passthrough_;
    cache_.count_passthrough_open(*handle->use->object);
  } else {
    ++opens_pages_;
    // Incomplete: each read(2) comes here and can be interrupted.
    info.direct_io = handle->use && !file && direct_io_;
    // Always: a nodeid's bytes never change. Without it open() throws out what mappings of others
    // have faulted in, and waits, beyond the reach of SIGKILL, for their reads that are parked.
    info.keep_cache = 1;
  }
  reply_open(request, info, std::move(handle));
}

void Edge::reply_open(fuse_req_t request, const fuse_file_info& answer,
                      std::unique_ptr<FileHandle> handle) {
  FileHandle* raw = handle.get();
  fuse_file_info info = answer;
  info.fh = reinterpret_cast<uint64_t>(raw);
  {
    std::lock_guard lock(handles_mutex_);
    files_.emplace(raw, std::move(handle));
  }
  if (fuse_reply_open(request, &info) == 0) return;
  // Interrupted meanwhile: the kernel will send no release.
  {
    std::lock_guard lock(handles_mutex_);
    const auto it = files_.find(raw);
    if (it == files_.end()) return;
    handle = std::move(it->second);
    files_.erase(it);
  }
  drop_io(*handle->inode);
}

void Edge::drop_io(Inode& inode) {
  std::lock_guard lock(inode.io_mutex);
  if (--inode.io.opens > 0) return;
  passthrough_.drop(inode.io);
  inode.io.mode = IoMode::kUnset;
  inode.io.retired = false;
}

void Edge::release(fuse_req_t request, const fuse_file_info& info) {
  std::unique_ptr<FileHandle> handle;
  {
    std::lock_guard lock(handles_mutex_);
    const auto it = files_.find(reinterpret_cast<FileHandle*>(info.fh));
    if (it != files_.end()) {
      handle = std::move(it->second);
      files_.erase(it);
    }
  }
  if (handle) drop_io(*handle->inode);
  fuse_reply_err(request, 0);
}

}  // namespace nexus::fs
