#include "backend/ram/ram_tier.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "backend/ram/memory_limits.h"

namespace nexus {

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kHugePage = 2 << 20;
// Smaller files take small pages: in the other mount one of two bytes takes a huge page.
constexpr uint64_t kHugeFrom = kHugePage;
// What stays available on the machine when a copy is made.
constexpr uint64_t kMarginMin = 256 << 20;
constexpr uint64_t kMarginShare = 20;  // 1/20 of the memory

uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// glibc of Debian 12 has these calls, but its header collides with linux/mount.h.
bool set_option(int context, const char* name, const char* value) {
  return ::syscall(SYS_fsconfig, context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, name,
                   value, 0) == 0;
}

// A tmpfs that is attached nowhere; -1 and errno when it is refused. `huge`: also when the kernel
// has no huge pages for it.
int detached_tmpfs(uint64_t size, bool huge) {
  const int context = static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
  if (context < 0) return -1;
  int mount = -1;
  if (set_option(context, "source", "nexusfs") &&
      set_option(context, "size", std::to_string(size).c_str()) &&
      set_option(context, "mode", "0700") && (!huge || set_option(context, "huge", "always"))) {
    set_option(context, "noswap", nullptr);  // Linux 6.4; older ones may swap it out
    if (::syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
      mount = static_cast<int>(::syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
                                         MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
    }
  }
  const int error = errno;
  ::close(context);
  errno = error;
  return mount;
}

int file_in(int mount) {
  if (mount >= 0) return ::openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  // Opened anew: memfd_create()'s own descriptor is not counted as a writer, so it gets no lease.
  const int made = ::memfd_create("nexus-object", MFD_CLOEXEC);
  if (made < 0) return -1;
  const int fd = ::open(("/proc/self/fd/" + std::to_string(made)).c_str(), O_RDWR | O_CLOEXEC);
  const int error = errno;
  ::close(made);
  errno = error;
  return fd;
}

bool allocate(int fd, uint64_t size) {
  if (size == 0) return true;
  while (::fallocate(fd, 0, 0, static_cast<off_t>(size)) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

// A write lease is given to the only user of a file. Asked for, and given back at once.
bool only_user(int fd) {
  if (::fcntl(fd, F_SETLEASE, F_WRLCK) != 0) return false;
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  return true;
}

// Whoever opens a file in the moment of a lease makes the kernel tell us by SIGIO, which would end
// the process.
void ignore_lease_breaks() {
  struct sigaction now {};
  if (::sigaction(SIGIO, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) {
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    ::sigaction(SIGIO, &ignore, nullptr);
  }
}

// Whether leases tell an idle file from a mapped one here.
bool leases_work(int mount) {
  const int fd = file_in(mount);
  if (fd < 0 || !allocate(fd, kPage) || !only_user(fd)) {
    if (fd >= 0) ::close(fd);
    return false;
  }
  bool works = false;
  const int reader = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC);
  if (reader >= 0) {
    void* const mapped = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, reader, 0);
    ::close(reader);
    if (mapped != MAP_FAILED) {
      works = !only_user(fd);
      ::munmap(mapped, kPage);
      works = works && only_user(fd);
    }
  }
  ::close(fd);
  return works;
}

}  // namespace

std::shared_ptr<RamTier> RamTier::open(const RamTierOptions& options, std::string* reason) {
  if (options.limit_bytes == 0) {
    *reason = "max_memory_cache_size_gb is 0";
    return nullptr;
  }
  std::shared_ptr<RamTier> tier(new RamTier);
  tier->limit_ = options.limit_bytes;
  for (const uint64_t whole : {cgroup_memory_limit(), system_memory().total_bytes}) {
    if (whole > 0) tier->limit_ = std::min(tier->limit_, whole / 4 * 3);
  }
  ignore_lease_breaks();
  tier->kind_ = "memfd";
  if (!options.tmpfs) {
    tier->reason_ = "switched off";
  } else {
    // The accounts bound the tier; the mounts' own bounds are the same, with room for their last
    // page.
    const uint64_t size = round_up(tier->limit_, kHugePage);
    tier->small_ = detached_tmpfs(size, false);
    if (tier->small_ < 0) {
      const int error = errno;
      tier->reason_ = std::string("a private tmpfs is refused: ") + std::strerror(error);
      if (error == EPERM) tier->reason_ += " (the kernel asks for CAP_SYS_ADMIN)";
    } else {
      tier->huge_ = detached_tmpfs(size, true);
      tier->kind_ = tier->huge_ < 0 ? "tmpfs" : "tmpfs with huge pages";
      if (tier->huge_ < 0) tier->reason_ = "the kernel has no huge pages for tmpfs";
    }
  }
  if (!leases_work(tier->small_)) {
    *reason = "the kernel does not tell whether a file is mapped (leases)";
    return nullptr;
  }
  reason->clear();
  return tier;
}

RamTier::~RamTier() {
  for (const int mount : {huge_, small_}) {
    if (mount >= 0) ::close(mount);
  }
}

uint64_t RamTier::charge_of(uint64_t size) const {
  return round_up(size, huge_ >= 0 && size >= kHugeFrom ? kHugePage : kPage);
}

Result<std::shared_ptr<ObjectFile>> RamTier::create(const std::string& key, uint64_t size,
                                                    Memory memory) {
  const uint64_t charge = charge_of(size);
  {
    std::lock_guard lock(mutex_);
    sweep_locked();
    if (charge > limit_ - std::min(limit_, used_)) {
      return fail(Code::kLimit, "the RAM tier has no room for " + std::to_string(size) + " bytes");
    }
    used_ += charge;
  }
  const int fd = file_in(size >= kHugeFrom && huge_ >= 0 ? huge_ : small_);
  const bool made =
      fd >= 0 && (memory == Memory::kNow ? allocate(fd, size)
                                         : ::ftruncate(fd, static_cast<off_t>(size)) == 0);
  if (!made) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    std::lock_guard lock(mutex_);
    used_ -= charge;
    return fail(Code::kNoSpace, std::string("the RAM tier: ") + std::strerror(error));
  }
  return std::shared_ptr<ObjectFile>(new ObjectFile(key, "(memory)", -1, fd, size),
                                     [tier = shared_from_this(), charge](ObjectFile* file) {
                                       auto descriptor = file->descriptor();
                                       delete file;
                                       tier->let_go(descriptor ? std::move(*descriptor) : nullptr,
                                                    charge);
                                     });
}

void RamTier::let_go(std::shared_ptr<const Descriptor> descriptor, uint64_t charge) {
  std::lock_guard lock(mutex_);
  leaving_.push_back({std::move(descriptor), charge});
  sweep_locked();
}

// What is still mapped keeps its memory, so it keeps its charge.
void RamTier::sweep_locked() const {
  std::erase_if(leaving_, [this](const Leaving& file) {
    if (file.descriptor && !only_user(file.descriptor->get())) return false;
    used_ -= file.charge;
    return true;
  });
}

bool RamTier::idle(const ObjectFile& file) {
  const auto descriptor = file.descriptor();
  return descriptor && only_user((*descriptor)->get());
}

bool RamTier::could_hold(uint64_t size) const {
  return charge_of(size) <= limit_ && !memory_is_short(size);
}

bool RamTier::memory_is_short(uint64_t size) {
  const SystemMemory memory = system_memory();
  if (memory.total_bytes == 0) return false;
  return memory.available_bytes < size + std::max(kMarginMin, memory.total_bytes / kMarginShare);
}

uint64_t RamTier::used_bytes() const {
  std::lock_guard lock(mutex_);
  sweep_locked();
  return used_;
}

Result<RamMapping> RamMapping::map(const ObjectFile& file) {
  if (file.size() == 0) return RamMapping({}, nullptr);
  const auto descriptor = file.descriptor();
  if (!descriptor) return tl::unexpected(descriptor.error());
  const size_t length = round_up(file.size(), kPage);
  void* const start =
      ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, (*descriptor)->get(), 0);
  if (start == MAP_FAILED) {
    return fail(Code::kNoSpace, std::string("map a file of the RAM tier: ") + std::strerror(errno));
  }
  // With the usual setting (defrag = madvise) this is what lets the kernel compact memory for us.
  (void)::madvise(start, length, MADV_HUGEPAGE);
  return RamMapping(std::span(static_cast<std::byte*>(start), length), *descriptor);
}

Result<void> RamMapping::populate(uint64_t offset, uint64_t length) {
  int error = 0;
  do {
    error = ::madvise(bytes_.data() + offset, length, MADV_POPULATE_WRITE) == 0 ? 0 : errno;
  } while (error == EINTR || error == EAGAIN);
  if (error == EINVAL) {  // Linux before 5.14
    error = ::fallocate(descriptor_->get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                        static_cast<off_t>(length)) == 0
                ? 0
                : errno;
  }
  if (error == 0) return {};
  return fail(Code::kNoSpace, std::string("the RAM tier: ") + std::strerror(error));
}

RamMapping::~RamMapping() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

RamMapping::RamMapping(RamMapping&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})), descriptor_(std::move(other.descriptor_)) {}

}  // namespace nexus
