// Handing backing files to the kernel (Linux 6.9, libfuse 3.17, CAP_SYS_ADMIN), and remembering why
// where it is refused.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "fs/inodes.h"

namespace nexus::fs {

// Thread safety: every method may be called from any thread; the per-nodeid ones need that
// inode.io_mutex is held.
class Passthrough {
 public:
  // What INIT gave. Until then nothing is passed through. `reason` says why not when it is off.
  void set_negotiated(bool on, int session_fd, std::string reason);

  bool on() const;
  // "" while it is on and was never refused.
  std::string reason() const;
  uint64_t registered() const;

  // Whether a registration of this file is worth trying: on, and its file system was not refused.
  bool may_serve(const ObjectFile& file) const;

  // Makes io.backing_id the one backing of the nodeid: registered at the first open, shared by the
  // others. False: refused (remembered), io is unchanged.
  bool acquire(InodeIo& io, const std::shared_ptr<ObjectFile>& file);
  // At the last release.
  void drop(InodeIo& io);

 private:
  void refuse(const ObjectFile& file, int error);

  mutable std::mutex mutex_;  // guards everything below
  bool on_ = false;
  int session_fd_ = -1;
  std::string reason_ = "not mounted yet";
  std::map<dev_t, std::string>
      refused_;  // by file system: a layered one is too deep, others are not
  uint64_t registered_ = 0;
};

}  // namespace nexus::fs
