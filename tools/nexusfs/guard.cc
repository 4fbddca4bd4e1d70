#include "tools/nexusfs/guard.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "tools/common/mount_table.h"

namespace nexus::tools {
namespace {

// What the daemon writes: "DEVICE MOUNTPOINT" and this once there is a mount, this alone at its
// end.
constexpr char kEnd = '\0';
constexpr char kControl[] = "/sys/fs/fuse/connections";

struct Watched {
  std::string device, mountpoint;
};

std::optional<Watched> parse(std::string_view text) {
  const size_t blank = text.find(' ');
  const size_t end = text.find(kEnd);
  if (blank == std::string_view::npos || end == std::string_view::npos) return std::nullopt;
  return Watched{std::string(text.substr(0, blank)),
                 std::string(text.substr(blank + 1, end - blank - 1))};
}

// The directory with one entry a connection; where nobody mounted it, a mount of our own that no
// path shows. -1: not to be had.
int open_control() {
  const int mounted = open(kControl, O_PATH | O_DIRECTORY | O_CLOEXEC);
  const int context = fsopen("fusectl", FSOPEN_CLOEXEC);
  if (context < 0) return mounted;
  int control = -1;
  if (fsconfig(context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
    control = fsmount(context, FSMOUNT_CLOEXEC, 0);
  }
  close(context);
  if (control < 0) return mounted;
  if (mounted >= 0) close(mounted);
  return control;
}

void abort_connection(const Watched& watched) {
  // Somebody may have unmounted it, and mounted another there.
  const auto top = find_mount(watched.mountpoint);
  if (!top || top->device != watched.device) return;
  const int control = open_control();
  if (control < 0) return;
  // Mounts without a block device have major 0, and connections are named by the minor.
  const std::string file = watched.device.substr(watched.device.find(':') + 1) + "/abort";
  const int fd = openat(control, file.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  [[maybe_unused]] const ssize_t written = write(fd, "1", 1);
}

}  // namespace

Guard::~Guard() {
  if (pipe_ < 0) return;
  [[maybe_unused]] const ssize_t written = write(pipe_, &kEnd, 1);
  close(pipe_);
  while (waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

Guard::Guard(Guard&& other) noexcept
    : process_(std::exchange(other.process_, -1)), pipe_(std::exchange(other.pipe_, -1)) {}

Guard& Guard::operator=(Guard&& other) noexcept {
  std::swap(process_, other.process_);
  std::swap(pipe_, other.pipe_);
  return *this;
}

Result<Guard> Guard::start() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return fail(Code::kLimit, std::string("pipe: ") + std::strerror(errno));
  }
  const std::string parent = std::to_string(getpid());
  const pid_t process = fork();
  if (process < 0) {
    const int error = errno;
    close(ends[0]);
    close(ends[1]);
    return fail(Code::kLimit, std::string("fork: ") + std::strerror(error));
  }
  if (process == 0) {
    const int null = open("/dev/null", O_RDWR);
    dup2(ends[0], STDIN_FILENO);
    for (int stream : {STDOUT_FILENO, STDERR_FILENO}) dup2(null, stream);
    // Ctrl-C in the terminal is for the daemon alone.
    setsid();
    execl("/proc/self/exe", "nexusfs", "guard", parent.c_str(), nullptr);
    _exit(1);
  }
  close(ends[0]);
  return Guard(process, ends[1]);
}

void Guard::watch(const std::string& mountpoint) {
  const auto top = find_mount(mountpoint);
  if (pipe_ < 0 || !top) return;
  const std::string line = top->device + " " + mountpoint + kEnd;
  [[maybe_unused]] const ssize_t written = write(pipe_, line.data(), line.size());
}

int guard_command(pid_t parent) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_IGN);
  const int death = signalfd(-1, &set, SFD_CLOEXEC);
  // Sent when the thread that forked us is gone, however many others of the daemon are left.
  if (death < 0 || prctl(PR_SET_PDEATHSIG, SIGUSR1) != 0 || getppid() != parent) return 1;
  if (chdir("/") != 0) return 1;
  std::string heard;
  while (true) {
    pollfd polls[] = {{STDIN_FILENO, POLLIN, 0}, {death, POLLIN, 0}};
    if (poll(polls, 2, -1) < 0 && errno != EINTR) return 1;
    if (polls[0].revents) {
      char buffer[512];
      const ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
      if (got < 0 && errno != EINTR) return 1;
      if (got == 0) return 0;  // closed with the daemon's last thread: the connection is, too
      if (got > 0) heard.append(buffer, static_cast<size_t>(got));
      const size_t end = heard.find(kEnd);
      if (end == 0 || (end != std::string::npos && end + 1 < heard.size())) return 0;
    }
    if (polls[1].revents) {
      if (const auto watched = parse(heard)) abort_connection(*watched);
      return 0;
    }
  }
}

}  // namespace nexus::tools
