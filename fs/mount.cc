#include "fs/mount.h"

#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cache/cache.h"
#include "backend/model/registry.h"
#include "fs/edge.h"
#include "fs/mountpoint.h"
#include "fs/ring_channel.h"

namespace nexus::fs {

namespace {

constexpr int kWakeSignal = SIGUSR2;
// A signal that arrives just before the read it should end is lost, so it is sent again.
constexpr std::chrono::milliseconds kWakeEvery{5};

int thread_count(int wanted) {
  if (wanted > 0) return wanted;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(2 * cores, 4, 16);
}

std::mutex last_message_mutex;  // guards last_message
std::string last_message;       // what libfuse said last: the reason of a failed mount

void on_fuse_log(fuse_log_level level, const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  std::string line = text;
  while (!line.empty() && line.back() == '\n') line.pop_back();
  if (level <= FUSE_LOG_ERR) {
    spdlog::warn("libfuse: {}", line);
  } else {
    spdlog::debug("libfuse: {}", line);
  }
  std::lock_guard lock(last_message_mutex);
  last_message = std::move(line);
}

void ignore_signal(int) {}

void install_wake_handler() {
  struct sigaction action {};
  action.sa_handler = ignore_signal;  // without SA_RESTART: a read of /dev/fuse ends with EINTR
  ::sigaction(kWakeSignal, &action, nullptr);
}

// Serving threads take no signal but the one that wakes them.
void block_other_signals() {
  sigset_t blocked;
  sigfillset(&blocked);
  sigdelset(&blocked, kWakeSignal);
  // Faults stay with the thread that causes them.
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
    sigdelset(&blocked, fault);
  }
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
}

}  // namespace

struct FuseMount::Impl {
  std::string mountpoint;
  FsOptions options;
  std::shared_ptr<Edge> edge;
  fuse_session* session = nullptr;
  bool mounted = false;

  std::mutex mutex;  // guards the two below
  std::condition_variable changed;
  int serving = 0;  // threads
  bool stop = false;

  ~Impl() { end(); }
  void serve();
  void end();
};

FuseMount::FuseMount(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

FuseMount::~FuseMount() = default;

Result<std::unique_ptr<FuseMount>> FuseMount::open(const std::string& mountpoint, FsOptions options,
                                                   Registry& registry, Cache& cache) {
  auto ready = prepare_mountpoint(mountpoint);
  if (!ready) return tl::unexpected(ready.error());
  fuse_set_log_func(on_fuse_log);
  install_wake_handler();

  auto impl = std::make_unique<Impl>();
  impl->mountpoint = *ready;
  impl->options = std::move(options);
  impl->edge = std::make_shared<Edge>(impl->options, models_of(registry), cache);

  // Not "ro": setfattr would be refused before it reaches us. max_read is told to both sides.
  std::string mount_options =
      "fsname=nexusfs,subtype=nexusfs,nosuid,nodev,noatime,max_read=1048576";
  if (impl->options.allow_other) mount_options += ",allow_other";
  const char* words[] = {"nexusfs", "-o", mount_options.c_str(), nullptr};
  fuse_args arguments = FUSE_ARGS_INIT(3, const_cast<char**>(words));
  impl->session = fuse_session_new(&arguments, &Edge::operations(), sizeof(fuse_lowlevel_ops),
                                   impl->edge.get());
  fuse_opt_free_args(&arguments);
  if (!impl->session) return fail(Code::kInvalid, "libfuse refuses the options " + mount_options);
  impl->edge->attach(impl->session, impl->mountpoint);
  if (fuse_session_mount(impl->session, impl->mountpoint.c_str()) != 0) {
    std::string why;
    {
      std::lock_guard lock(last_message_mutex);
      why = last_message;
    }
    if (::access("/dev/fuse", F_OK) != 0) why = "there is no /dev/fuse";
    if (why.empty()) why = "see the message of fusermount3";
    return fail(Code::kInvalid, "mount on " + impl->mountpoint + ": " + why);
  }
  impl->mounted = true;
  if (RingChannel* ring = impl->edge->ring()) ring->attach(impl->session, impl->mountpoint);

  // The cache and the registry keep their listeners for good; the edge may be gone by then.
  const std::weak_ptr<Edge> edge = impl->edge;
  cache.on_change([edge](const std::shared_ptr<Object>& object) {
    if (auto alive = edge.lock()) alive->object_changed(object);
  });
  registry.on_refresh([edge](const std::string& repo, const std::string& revision) {
    if (auto alive = edge.lock()) alive->model_refreshed(repo, revision);
  });
  registry.on_put([edge](const std::string& repo, const std::string& path) {
    if (auto alive = edge.lock()) alive->file_replaced(repo, path);
  });
  return std::unique_ptr<FuseMount>(new FuseMount(std::move(impl)));
}

// The loop of one serving thread. libfuse's own loop can only be ended by cancelling its threads.
void FuseMount::Impl::serve() {
  block_other_signals();
  fuse_buf buffer{};
  while (!fuse_session_exited(session)) {
    const int received = fuse_session_receive_buf(session, &buffer);
    if (received == -EINTR || received == -EAGAIN) continue;
    if (received <= 0) break;  // unmounted
    fuse_session_process_buf(session, &buffer);
  }
  std::free(buffer.mem);
  std::lock_guard lock(mutex);
  --serving;
  changed.notify_all();
}

Result<void> FuseMount::run() {
  Impl& impl = *impl_;
  if (RingChannel* ring = impl.edge->ring()) ring->start();
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(impl.mutex);
    impl.serving = thread_count(impl.options.threads);
    for (int i = 0; i < impl.serving; ++i) {
      threads.emplace_back([&impl] {
        ::pthread_setname_np(::pthread_self(), "fuse-serve");
        impl.serve();
      });
    }
  }
  {
    std::unique_lock lock(impl.mutex);
    // Until the first thread ends by itself (unmounted) or somebody stops us.
    const int all = static_cast<int>(threads.size());
    impl.changed.wait(lock, [&] { return impl.stop || impl.serving < all; });
  }
  impl.edge->close();
  fuse_session_exit(impl.session);
  {
    std::unique_lock lock(impl.mutex);
    while (impl.serving > 0) {
      for (auto& thread : threads) ::pthread_kill(thread.native_handle(), kWakeSignal);
      impl.changed.wait_for(lock, kWakeEvery, [&] { return impl.serving == 0; });
    }
  }
  for (auto& thread : threads) thread.join();
  if (RingChannel* ring = impl.edge->ring()) ring->stop();
  impl.end();
  return {};
}

void FuseMount::request_stop() {
  {
    std::lock_guard lock(impl_->mutex);
    if (std::exchange(impl_->stop, true)) return;
  }
  impl_->edge->close();
  impl_->changed.notify_all();
}

// Detaches (lazily, so that open files do not keep the mount) and closes the connection: what the
// kernel still asks is answered by the kernel with an error.
void FuseMount::Impl::end() {
  if (!session) return;
  edge->stop_replies();
  edge->settle_notifications();
  if (mounted) fuse_session_unmount(session);
  mounted = false;
  edge->stop();
  fuse_session_destroy(session);
  session = nullptr;
}

MountStatus FuseMount::status() const {
  return impl_->edge->status();
}

const std::string& FuseMount::mountpoint() const {
  return impl_->mountpoint;
}

}  // namespace nexus::fs
