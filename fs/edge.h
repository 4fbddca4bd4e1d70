// The FUSE edge: parses a request, asks the tree or the cache, replies. Nothing here waits: what is
// not known at once is parked (fs/parking.h) and answered from a completion.
//
// Threads
//   serving threads (fs/mount.cc)  run the operations; may read cached bytes from disk
//   fuse-reply (kReplyThreads)     copy fetched bytes and register backings, so that the cache's
//   core
//                                  thread does not
//   fuse-aux (1)                   carries out interrupts
//   fuse-notify (1)                tells the kernel what to forget; it alone may wait for the
//   kernel,
//                                  which may be waiting for us
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "fs/fuse_api.h"
#include "fs/inodes.h"
#include "fs/limits.h"
#include "fs/log_once.h"
#include "fs/options.h"
#include "fs/parking.h"
#include "fs/passthrough.h"
#include "fs/status.h"
#include "fs/tree.h"
#include "prefetch/layer_events.h"
#include "prefetch/read_meter.h"
#include "prefetch/sequential.h"

namespace nexus::fs {

class RingChannel;

// An object that is open, however often and under however many names: its read-ahead, and the word
// to the cache when the last handle is gone.
class ObjectUse {
 public:
  ObjectUse(Cache& cache, std::shared_ptr<Object> object_in,
            std::shared_ptr<prefetch::WalkedBytes> walked)
      : object(std::move(object_in)), read_ahead(std::move(walked)), cache_(cache) {}
  ~ObjectUse() { cache_.abandon(object); }
  ObjectUse(const ObjectUse&) = delete;
  ObjectUse& operator=(const ObjectUse&) = delete;

  const std::shared_ptr<Object> object;
  std::mutex mutex;  // guards the two below
  prefetch::SequentialReadAhead read_ahead;
  prefetch::ReadMeter meter;

 private:
  Cache& cache_;
};

// What reading a file means for the walk over its model's layers.
struct FileLayers {
  std::shared_ptr<Model> model;
  LayerAccess access;
};

// fuse_file_info::fh of a file. Lives from open (parked ones too) to release.
struct FileHandle {
  FileHandle(InodePtr inode_in, NodePtr node_in, std::shared_ptr<ObjectUse> use_in)
      : inode(std::move(inode_in)), node(std::move(node_in)), use(std::move(use_in)) {
    if (use) use->object->add_open();
  }
  ~FileHandle() {
    if (use) use->object->drop_open();
  }
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;

  const InodePtr inode;
  const NodePtr node;
  const std::shared_ptr<ObjectUse> use;      // null: the content is node->entry.literal
  std::shared_ptr<const FileLayers> layers;  // null: none, or nobody wants to know
};

// fuse_file_info::fh of a directory: what it held when it was opened, so offsets are stable.
struct DirectoryHandle {
  InodePtr inode;
  std::vector<TreeEntry> entries;
};

// Thread safety: operations come from the serving threads, the rest may be called from any thread.
class Edge : public std::enable_shared_from_this<Edge> {
 public:
  // `cache` outlives the edge.
  Edge(FsOptions options, std::unique_ptr<Models> models, Cache& cache);
  ~Edge();

  static const fuse_lowlevel_ops& operations();
  static Edge& of(fuse_req_t request) { return *static_cast<Edge*>(fuse_req_userdata(request)); }

  void attach(fuse_session* session, std::string mountpoint);
  // FUSE over io_uring; null if that was not asked for.
  RingChannel* ring() const { return ring_.get(); }
  // Parked requests end with EIO, and what would be parked from now on too. Returns soon.
  void close();
  // After the serving threads have ended, before the session's descriptor is closed: nothing is
  // sent through it any more.
  void stop_replies();
  // Before the descriptor is closed, too: waits for notifications under way, a moment where the kernel holds one up.
  void settle_notifications();
  // After it was closed, which ends a notification that the kernel holds up: joins the own threads.
  void stop();

  // The kernel's memory of an object or a model is out of date. Returns at once.
  void object_changed(const std::shared_ptr<Object>& object);
  void model_refreshed(const std::string& repo, const std::string& revision);
  // A file was put into the cache in the place of `path` of the model.
  void file_replaced(const std::string& repo, const std::string& path);

  MountStatus status() const;
  Parking& parking() { return parking_; }

 private:
  friend struct Operations;  // edge.cc: the table of C functions

  // edge.cc
  void init(fuse_conn_info* connection);
  void tune_read_ahead();
  void lookup(fuse_req_t request, fuse_ino_t parent, const char* name);
  void getattr(fuse_req_t request, fuse_ino_t ino);
  void access(fuse_req_t request, fuse_ino_t ino, int mask);
  void statfs(fuse_req_t request);

  // edge_open.cc
  void open(fuse_req_t request, fuse_ino_t ino, const fuse_file_info& info);
  void finish_open(fuse_req_t request, pid_t tid, fuse_file_info info,
                   std::unique_ptr<FileHandle> handle, std::shared_ptr<ObjectFile> file);
  void reply_open(fuse_req_t request, const fuse_file_info& info,
                  std::unique_ptr<FileHandle> handle);
  void release(fuse_req_t request, const fuse_file_info& info);
  void drop_io(Inode& inode);
  std::shared_ptr<ObjectUse> use_of(const std::shared_ptr<Object>& object);

  // edge_read.cc
  void read(fuse_req_t request, size_t size, off_t offset, const fuse_file_info& info);
  void fetch_then_read(const std::shared_ptr<Parked>& parked, const std::shared_ptr<ObjectUse>& use,
                       ByteRange range, int tries);
  void read_ahead(ObjectUse& use, ByteRange range);

  // edge_layers.cc
  std::shared_ptr<const FileLayers> layers_of(const Node& node) const;
  void layer_opened(const FileLayers* layers, bool here);
  void layer_read(const FileLayers* layers, ObjectUse& use, ByteRange range);

  // edge_directory.cc
  void opendir(fuse_req_t request, fuse_ino_t ino, const fuse_file_info& info);
  void readdir(fuse_req_t request, size_t size, off_t offset, const fuse_file_info& info,
               bool plus);
  void releasedir(fuse_req_t request, const fuse_file_info& info);

  // edge_xattr.cc
  void getxattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size);
  void listxattr(fuse_req_t request, fuse_ino_t ino, size_t size);
  void setxattr(fuse_req_t request, fuse_ino_t ino, const std::string& name,
                std::string_view value);

  // Who asks, for the tree: limits apply, the wait ends with the parked request.
  Asker asker_of(const std::shared_ptr<Parked>& parked);
  // Files and directories inside a restricted model are for its owner; that it exists is not
  // hidden.
  bool may_see(const Node& node, uid_t uid) const;
  fuse_entry_param entry_of(const Inode& inode, const Node& node) const;
  struct stat attributes_of(const Node& node) const;
  double entry_ttl(const Inode& inode, const Node& node) const;
  InodePtr count_lookup(uint64_t parent, const std::string& name, const NodePtr& node);
  void reply_error(fuse_req_t request, const std::string& subject, const Error& error);
  // Answers a parked open or read that failed. ESTALE comes when the model was resolved again, so that the kernel, which
  // walks the path once more for an open, finds what is there now.
  void fail_parked(const std::shared_ptr<Parked>& parked, const NodePtr& node, const Error& error);
  void invalidate_entry(const Inode& inode);

  const FsOptions options_;
  const uid_t uid_;
  const gid_t gid_;
  Cache& cache_;
  Tree tree_;
  Inodes inodes_;
  Passthrough passthrough_;
  UidLimits limits_;
  LogOnce log_;
  LoopExecutor aux_;
  LoopExecutor notify_;
  ThreadPool replies_;
  Parking parking_;
  std::unique_ptr<RingChannel> ring_;  // constant
  fuse_session* session_ = nullptr;    // constant once attached
  std::string mountpoint_;
  std::atomic<bool> direct_io_{false};
  std::atomic<bool> stopped_{false};  // no more notifications

  std::mutex uses_mutex_;  // guards the two below
  std::unordered_map<const Object*, std::weak_ptr<ObjectUse>> uses_;
  std::unordered_map<std::string, std::shared_ptr<prefetch::WalkedBytes>> walked_;  // by model

  mutable std::mutex handles_mutex_;  // guards the two below: what the kernel has not released yet
  std::unordered_map<FileHandle*, std::unique_ptr<FileHandle>> files_;
  std::unordered_map<DirectoryHandle*, std::unique_ptr<DirectoryHandle>> directories_;

  std::atomic<uint64_t> opens_passthrough_{0}, opens_pages_{0}, opens_stale_{0};
};

}  // namespace nexus::fs
