// The table of C functions that libfuse calls: each hands over to Edge, or refuses what would
// change the mount.
#include <cerrno>
#include <cstdint>

#include "fs/edge.h"

namespace nexus::fs {

struct Operations {
  static void init(void* edge, fuse_conn_info* connection) {
    static_cast<Edge*>(edge)->init(connection);
  }
  static void lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    Edge::of(request).lookup(request, parent, name);
  }
  static void forget(fuse_req_t request, fuse_ino_t ino, uint64_t lookups) {
    Edge::of(request).inodes_.forget(ino, lookups);
    fuse_reply_none(request);
  }
  static void forget_multi(fuse_req_t request, size_t count, fuse_forget_data* forgets) {
    for (size_t i = 0; i < count; ++i) {
      Edge::of(request).inodes_.forget(forgets[i].ino, forgets[i].nlookup);
    }
    fuse_reply_none(request);
  }
  static void getattr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
    Edge::of(request).getattr(request, ino);
  }
  static void access(fuse_req_t request, fuse_ino_t ino, int mask) {
    Edge::of(request).access(request, ino, mask);
  }
  static void statfs(fuse_req_t request, fuse_ino_t) { Edge::of(request).statfs(request); }
  static void open(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
    Edge::of(request).open(request, ino, *info);
  }
  static void read(fuse_req_t request, fuse_ino_t, size_t size, off_t offset,
                   fuse_file_info* info) {
    Edge::of(request).read(request, size, offset, *info);
  }
  static void release(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    Edge::of(request).release(request, *info);
  }
  static void opendir(fuse_req_t request, fuse_ino_t ino, fuse_file_info* info) {
    Edge::of(request).opendir(request, ino, *info);
  }
  static void readdir(fuse_req_t request, fuse_ino_t, size_t size, off_t offset,
                      fuse_file_info* info) {
    Edge::of(request).readdir(request, size, offset, *info, false);
  }
  static void readdirplus(fuse_req_t request, fuse_ino_t, size_t size, off_t offset,
                          fuse_file_info* info) {
    Edge::of(request).readdir(request, size, offset, *info, true);
  }
  static void releasedir(fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
    Edge::of(request).releasedir(request, *info);
  }
  static void getxattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
    Edge::of(request).getxattr(request, ino, name, size);
  }
  static void listxattr(fuse_req_t request, fuse_ino_t ino, size_t size) {
    Edge::of(request).listxattr(request, ino, size);
  }

  static void setxattr(fuse_req_t request, fuse_ino_t ino, const char* name, const char* value,
                       size_t size, int) {
    Edge::of(request).setxattr(request, ino, name, {value, size});
  }

  // Whatever the arguments: a change is refused.
  template <typename... Arguments>
  static void refuse(fuse_req_t request, Arguments...) {
    fuse_reply_err(request, EROFS);
  }
};

// Not given, so that the kernel does without after one ENOSYS: flush, fsync, lseek (no SEEK_HOLE:
// the kernel's own lseek sees a file without holes), locks (kept by the kernel), ioctl, poll.
const fuse_lowlevel_ops& Edge::operations() {
  static const fuse_lowlevel_ops table = [] {
    fuse_lowlevel_ops ops{};
    ops.init = Operations::init;
    ops.lookup = Operations::lookup;
    ops.forget = Operations::forget;
    ops.forget_multi = Operations::forget_multi;
    ops.getattr = Operations::getattr;
    ops.access = Operations::access;
    ops.statfs = Operations::statfs;
    ops.open = Operations::open;
    ops.read = Operations::read;
    ops.release = Operations::release;
    ops.opendir = Operations::opendir;
    ops.readdir = Operations::readdir;
    ops.readdirplus = Operations::readdirplus;
    ops.releasedir = Operations::releasedir;
    ops.getxattr = Operations::getxattr;
    ops.listxattr = Operations::listxattr;
    ops.setattr = Operations::refuse;
    ops.mknod = Operations::refuse;
    ops.mkdir = Operations::refuse;
    ops.unlink = Operations::refuse;
    ops.rmdir = Operations::refuse;
    ops.symlink = Operations::refuse;
    ops.rename = Operations::refuse;
    ops.link = Operations::refuse;
    ops.create = Operations::refuse;
    ops.write = Operations::refuse;
    ops.setxattr = Operations::setxattr;
    ops.removexattr = Operations::refuse;
    ops.fallocate = Operations::refuse;
    ops.copy_file_range = Operations::refuse;
    return ops;
  }();
  return table;
}

}  // namespace nexus::fs
