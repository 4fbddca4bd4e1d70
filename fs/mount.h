// A mount, from opening it to its end.
#pragma once

#include <memory>
#include <string>

#include "backend/base/error.h"
#include "fs/options.h"
#include "fs/status.h"

namespace nexus {
class Cache;
class Registry;
}  // namespace nexus

namespace nexus::fs {

// One a process: open(), run(), destroy. `registry` and `cache` outlive it.
//
// While run() lasts its threads get SIGUSR2, which does nothing but end their wait for the kernel:
// open() installs an empty handler, so nobody else in the process may use that signal.
class FuseMount {
 public:
  // Mounts; the kernel's requests wait until run(). Errors are for the user's eyes.
  static Result<std::unique_ptr<FuseMount>> open(const std::string& mountpoint, FsOptions options,
                                                 Registry& registry, Cache& cache);
  ~FuseMount();  // unmounts; run() must have returned
  FuseMount(const FuseMount&) = delete;
  FuseMount& operator=(const FuseMount&) = delete;

  // Serves until somebody unmounts or request_stop(). Blocks; the mount is gone when it returns.
  Result<void> run();
  // From any thread, any number of times, also before run(); not from a signal handler (use a
  // thread that waits for signals). Parked requests end with EIO, run() detaches the mount and
  // returns, even while files are open.
  void request_stop();

  MountStatus status() const;
  const std::string& mountpoint() const;

 private:
  struct Impl;
  explicit FuseMount(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nexus::fs
