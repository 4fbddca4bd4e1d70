// What the mount can be told. Passed by value at FuseMount::open and constant from then on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace nexus::prefetch {
class LayerEvents;
}

namespace nexus::fs {

// What one user may keep busy. Root and the daemon's own uid are bound by parked_max alone. Whoever
// is over a limit gets EAGAIN; nothing is queued for later.
struct LimitOptions {
  size_t parked_max = 65536;        // requests that wait, all users together
  size_t parked_per_uid = 4096;     // requests that wait
  size_t resolving_per_uid = 16;    // models being resolved at once
  double new_models_per_s = 1.0;    // refill of the bucket of lookups that go to the hub
  double new_models_burst = 120.0;  // size of that bucket
};

struct FsOptions {
  bool allow_other = false;
  bool passthrough = true;   // false: never try it
  bool direct_io = true;     // false: incomplete objects go through the page cache
  bool fuse_io_uring = false;          // true: FUSE over io_uring where it can be had
  int fuse_io_uring_queue_depth = 64;  // requests of each CPU that the kernel hands over at once
  int threads = 0;           // serving threads; 0: two a core, 4 to 16
  int read_ahead_kb = 2048;  // the kernel's window; it is also read around each mmap fault
  // Page-cache reads wait in the kernel's background queue, and a full queue holds up reads of
  // cached files too: it must have room for every reader that may be parked there.
  unsigned max_background = 1024;
  unsigned congestion_threshold = 768;
  double file_ttl_s = 86400;    // files and directories of a model, which never change
  double directory_ttl_s = 10;  // the root, organisations, model directories
  LimitOptions limits;
  // Told of layers that readers come to; outlives the mount. Null: nobody wants to know.
  prefetch::LayerEvents* layer_events = nullptr;
  // JSON text of user.nexus.stats; the argument is a model ("org/name") or "" for the whole mount.
  std::function<std::string(const std::string& model)> stats_json;
};

}  // namespace nexus::fs
