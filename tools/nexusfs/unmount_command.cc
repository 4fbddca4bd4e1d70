#include "tools/nexusfs/unmount_command.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "fs/mountpoint.h"
#include "tools/common/control_client.h"
#include "tools/common/mount_table.h"

namespace nexus::tools {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kAnswerWait = std::chrono::seconds(10);
constexpr auto kEndWait = std::chrono::seconds(60);
constexpr int kStackedMax = 16;

// A descriptor of the process itself, so that a pid that is used again is not mistaken for it.
class Process {
 public:
  explicit Process(pid_t pid)
      : fd_(pid > 0 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1) {}
  ~Process() {
    if (fd_ >= 0) close(fd_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // False when it still runs at the deadline. A process that was gone before has ended.
  bool wait_ended(std::chrono::milliseconds wait) const {
    const auto deadline = Clock::now() + wait;
    while (fd_ >= 0) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
      if (left.count() <= 0) return false;
      pollfd poll_fd{fd_, POLLIN, 0};
      if (poll(&poll_fd, 1, static_cast<int>(left.count())) > 0) break;
    }
    return true;
  }

 private:
  const int fd_;
};

Result<void> detach_all(const std::string& mountpoint) {
  for (int i = 0; i < kStackedMax; ++i) {
    const auto top = find_mount(mountpoint);
    if (!top || !top->is_nexus()) return {};
    if (auto ok = fs::detach_mount(mountpoint); !ok) return ok;
  }
  return fail(Code::kLimit, mountpoint + ": more mounts lie on each other than are plausible");
}

Result<void> stop_daemon(const std::string& mountpoint, ControlClient client) {
  const pid_t pid = client.peer().pid;
  const Process daemon(pid);
  auto answer = client.call(Json{{"command", "unmount"}}, kAnswerWait);
  // A daemon that was ending anyway may close the connection instead.
  if (!answer && answer.error().code != Code::kNotFound) {
    if (answer.error().code != Code::kLimit) return fail(answer.error(), mountpoint);
    if (auto ok = detach_all(mountpoint); !ok) return ok;
    return fail(Code::kLimit, mountpoint + ": detached, but its daemon, pid " +
                                  std::to_string(pid) + ", does not answer and was left running");
  }
  if (!daemon.wait_ended(kEndWait)) {
    if (auto ok = detach_all(mountpoint); !ok) return ok;
    return fail(Code::kLimit, mountpoint + ": detached, but its daemon, pid " +
                                  std::to_string(pid) + ", is still ending");
  }
  return detach_all(mountpoint);
}

}  // namespace

Result<void> unmount(const std::string& path) {
  auto mountpoint = canonical_mountpoint(path);
  if (!mountpoint) return tl::unexpected(mountpoint.error());
  auto client = connect_mount(*mountpoint, process_environment());
  if (client) return stop_daemon(*mountpoint, std::move(*client));

  const auto top = find_mount(*mountpoint);
  if (!top) return fail(Code::kNotFound, *mountpoint + ": nothing is mounted there");
  if (!top->is_nexus()) {
    return fail(Code::kNotFound,
                *mountpoint + ": is a mount of type " + top->type + ", not of nexusfs");
  }
  if (client.error().code == Code::kAccess) return tl::unexpected(client.error());
  return detach_all(*mountpoint);
}

}  // namespace nexus::tools
