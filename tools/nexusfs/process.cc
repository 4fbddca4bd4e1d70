#include "tools/nexusfs/process.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

#include "backend/store/hang_guard.h"
#include "tools/common/patient_sink.h"

namespace nexus::tools {
namespace {

constexpr char kMounted = 'M';
constexpr char kFailed = 'E';
// timeout(1) and shells may send one signal twice, to the process and to its group: that is one
// request.
constexpr auto kSameRequest = std::chrono::seconds(1);
// One descriptor a cached object that is open, a few a connection.
constexpr rlim_t kOpenFilesWanted = 65536;

sigset_t our_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  return set;
}

void raise_open_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlimit hard_as_well = {kOpenFilesWanted, kOpenFilesWanted};
  if (limit.rlim_max < kOpenFilesWanted && setrlimit(RLIMIT_NOFILE, &hard_as_well) == 0)
    return;  // root
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // what we had is kept when this is refused
}

bool write_all(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t put = write(fd, text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    done += static_cast<size_t>(put);
  }
  return true;
}

std::string read_to_end(int fd) {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

[[noreturn]] void end_parent(const std::string& error) {
  if (!error.empty()) std::fprintf(stderr, "nexusfs: %s\n", error.c_str());
  std::fflush(nullptr);
  _exit(error.empty() ? 0 : 1);  // what main() registered with atexit belongs to the child
}

[[noreturn]] void wait_for_child(pid_t child, int fd, const std::function<Result<void>()>& answers,
                                 const std::string& log_file) {
  const std::string word = read_to_end(fd);
  if (!word.empty() && word[0] == kFailed) end_parent(word.substr(1));
  if (!word.empty() && word[0] == kMounted) {
    const Result<void> answer = answers();
    if (answer) end_parent("");
    end_parent(answer.error().what + "; see " + log_file);
  }
  int status = 0;
  std::string how = "ended";
  if (waitpid(child, &status, 0) == child && WIFSIGNALED(status)) {
    how = "was killed by signal " + std::to_string(WTERMSIG(status));
  }
  end_parent("the daemon " + how + " before the mount was there; see " + log_file);
}

}  // namespace

void prepare_process() {
  std::signal(SIGPIPE, SIG_IGN);
  umask(077);
  raise_open_files();
}

Starter::~Starter() {
  if (fd_ >= 0) close(fd_);
}

Starter::Starter(Starter&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

bool Starter::mounted() {
  if (fd_ < 0) return true;
  // Before the parent ends: who waits for our standard output to close (a pipe) must not wait for
  // us.
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null >= 0) {
    for (int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null, stream);
    if (null > STDERR_FILENO) close(null);
  }
  const bool heard = write_all(fd_, std::string(1, kMounted));
  close(std::exchange(fd_, -1));
  return heard;
}

void Starter::failed(const std::string& message) {
  if (fd_ < 0) {
    std::fprintf(stderr, "nexusfs: %s\n", message.c_str());
    return;
  }
  write_all(fd_, kFailed + message);
  close(std::exchange(fd_, -1));
}

Result<Starter> daemonise(const std::function<Result<void>()>& answers,
                          const std::string& log_file) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return fail(Code::kLimit, std::string("pipe: ") + std::strerror(errno));
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) return fail(Code::kLimit, std::string("fork: ") + std::strerror(errno));
  if (child > 0) {
    close(ends[1]);
    wait_for_child(child, ends[0], answers, log_file);
  }
  close(ends[0]);
  setsid();
  // The directory it was started in must not be kept busy. Paths are absolute by now.
  if (chdir("/") != 0) return fail(Code::kInvalid, std::string("chdir /: ") + std::strerror(errno));
  return Starter(ends[1]);
}

int end_process(int status) {
  // Those of zones write to the log: it ends when they have.
  if (HangGuard::threads_alive() == 0) {
    spdlog::shutdown();
    if (PatientSink::threads_alive() == 0) return status;
  }
  _exit(status);
}

void SignalThread::block() {
  const sigset_t set = our_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

SignalThread::SignalThread(std::function<void()> stop, std::function<void()> give_up,
                           bool hangup_stops)
    : stop_(std::move(stop)), give_up_(std::move(give_up)), hangup_stops_(hangup_stops) {
  const sigset_t set = our_signals();
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  end_fd_ = eventfd(0, EFD_CLOEXEC);
  thread_ = std::thread([this] { run(); });
}

SignalThread::~SignalThread() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(end_fd_, &one, sizeof one);
  thread_.join();
  close(signal_fd_);
  close(end_fd_);
}

void SignalThread::run() {
  using Clock = std::chrono::steady_clock;
  std::optional<Clock::time_point> first;
  while (true) {
    pollfd polls[] = {{signal_fd_, POLLIN, 0}, {end_fd_, POLLIN, 0}};
    if (poll(polls, 2, -1) < 0 && errno != EINTR) return;
    if (polls[1].revents) return;
    signalfd_siginfo info{};
    if (!polls[0].revents || read(signal_fd_, &info, sizeof info) != sizeof info) continue;
    if (info.ssi_signo == SIGHUP && !hangup_stops_) continue;
    if (!first) {
      first = Clock::now();
      stop_();
    } else if (Clock::now() - *first > kSameRequest) {
      give_up_();
    }
  }
}

}  // namespace nexus::tools
