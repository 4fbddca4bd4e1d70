// How the mount serves, for `nexusctl status`.
#pragma once

#include <cstdint>
#include <string>

namespace nexus::fs {

struct MountStatus {
  std::string mountpoint;
  std::string kernel;   // "6.18.44"
  std::string libfuse;  // "3.18.3"
  bool passthrough = false;
  std::string passthrough_reason;  // why it is off or was refused for some files; else ""
  bool fuse_io_uring = false;
  std::string fuse_io_uring_reason;     // why it is off; else ""
  uint64_t fuse_io_uring_requests = 0;  // that came so
  std::string complete_mode;       // how complete files are read: passthrough, page-cache
  std::string incomplete_mode;     // direct-io, page-cache
  std::string direct_io_reason;    // why incomplete files are not read by direct-io; else ""
  uint64_t parked = 0;             // requests that wait now
  uint64_t open_files = 0;
  uint64_t nodeids = 0;
  uint64_t opens_passthrough = 0;  // since the mount
  uint64_t opens_pages = 0;
  uint64_t opens_stale = 0;  // sent back to the path because the file has another nodeid now
};

}  // namespace nexus::fs
