// A process beside the daemon that ends the mount's connection should the daemon be killed.
//
// The kernel ends it by itself when the last descriptor of /dev/fuse closes. But a thread that it
// keeps waiting (it tells the kernel of a change to a page that a reader holds locked, and that
// reader waits for the daemon) outlives even SIGKILL, with the descriptor: the readers would hang.
#pragma once

#include <sys/types.h>

#include <string>

#include "backend/base/error.h"

namespace nexus::tools {

class Guard {
 public:
  Guard() = default;  // none
  ~Guard();           // tells it that all is well, and waits for its end
  Guard(Guard&& other) noexcept;
  Guard& operator=(Guard&& other) noexcept;

  // Starts it, from the thread whose death counts: the main thread, before any other is made.
  static Result<Guard> start();
  // What is guarded from here on: a mountpoint as the kernel lists it. Once.
  void watch(const std::string& mountpoint);

 private:
  Guard(pid_t process, int pipe) : process_(process), pipe_(pipe) {}
  pid_t process_ = -1;
  int pipe_ = -1;
};

// The guard's own program, `nexusfs guard PARENT` with the daemon's pipe as standard input.
int guard_command(pid_t parent);

}  // namespace nexus::tools
