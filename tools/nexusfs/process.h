// The daemon as a process: its limits, signals, and how it leaves the terminal.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "backend/base/error.h"

namespace nexus::tools {

// SIGPIPE ignored, umask 077, as many open files as the system allows. Before any thread is made.
void prepare_process();

// The child's end of the pipe on which the parent waits. In the foreground it is not connected.
class Starter {
 public:
  Starter() = default;
  explicit Starter(int fd) : fd_(fd) {}
  ~Starter();
  Starter(Starter&& other) noexcept;
  Starter& operator=(Starter&&) = delete;

  // The mount is there: leaves the terminal (standard streams to /dev/null) and lets the parent
  // end. False when nobody waits any more: the user gave up, and the mount should end too.
  bool mounted();
  // The mount failed; the parent prints `message`.
  void failed(const std::string& message);

 private:
  int fd_ = -1;
};

// Forks; must run before any thread is made. The child returns from it with its Starter. The parent
// does not return: it waits for the child's word, then for `answers()` to succeed (asked from
// outside, once mounted), and ends with 0 or, after printing what went wrong, 1.
Result<Starter> daemonise(const std::function<Result<void>()>& answers,
                          const std::string& log_file);

// What main() does last, when all else is gone: ends the log and returns `status`. Where a disk that
// hangs keeps a thread, the process ends here: that thread may go on at any moment, and the logger
// and the static objects that it uses must be there as long as it is.
int end_process(int status);

// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it makes, and takes them on a thread
// of its own: the first calls `stop`, one that comes more
// than a second later `give_up`. SIGHUP counts only when `hangup_stops`.
class SignalThread {
 public:
  static void block();  // before any thread is made
  SignalThread(std::function<void()> stop, std::function<void()> give_up, bool hangup_stops);
  ~SignalThread();
  SignalThread(const SignalThread&) = delete;
  SignalThread& operator=(const SignalThread&) = delete;

 private:
  void run();

  const std::function<void()> stop_, give_up_;
  const bool hangup_stops_;
  int signal_fd_ = -1, end_fd_ = -1;
  std::thread thread_;
};

}  // namespace nexus::tools
