#include "tools/nexus-tune/disk_bench.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <string>
#include <system_error>

#include "backend/io/engine.h"

namespace nexus::tune {

namespace {

std::string text_of(int error) {
  return std::generic_category().message(error);
}

// Bytes that no file system compresses or leaves out.
void fill(std::span<std::byte> memory) {
  uint64_t state = 0x9e3779b97f4a7c15;
  for (size_t i = 0; i + 8 <= memory.size(); i += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    for (size_t j = 0; j < 8; ++j) memory[i + j] = static_cast<std::byte>(state >> (8 * j));
  }
}

Result<UniqueFd> open_test_file(const Zone& zone, const std::string& scratch) {
  UniqueFd file;
  if (!zone.writable) {
    file.reset(::open(zone.existing_file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) return fail(Code::kAccess, zone.existing_file + ": " + text_of(errno));
    return file;
  }
  if (!scratch.empty()) {
    file.reset(::open(scratch.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file) return disk_error(errno, scratch);
    struct stat st;
    if (::fstat(file.get(), &st) != 0 || !S_ISREG(st.st_mode)) {
      return fail(Code::kInvalid, scratch + " is not a regular file");
    }
    return file;
  }
  file.reset(::open(zone.path.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file) return file;
  std::string name = zone.path + "/nexus-tune.XXXXXX";
  file.reset(::mkostemp(name.data(), O_CLOEXEC));
  if (!file) return disk_error(errno, "zone " + zone.path);
  ::unlink(name.c_str());
  return file;
}

}  // namespace

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::string drop_page_cache() {
  const UniqueFd drop(::open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC));
  if (!drop) return "drop_caches: " + text_of(errno);
  if (::write(drop.get(), "1", 1) != 1) return "drop_caches: " + text_of(errno);
  return "";
}

uint64_t memory_budget() {
  std::ifstream in("/proc/meminfo");
  std::string name, unit;
  uint64_t kib = 0;
  while (in >> name >> kib) {
    std::getline(in, unit);
    if (name == "MemAvailable:") return kib * 1024 / 4;
  }
  return 256 << 20;
}

Result<DiskBench> DiskBench::make(const Zone& zone, const BenchOptions& options) {
  auto file = open_test_file(zone, options.scratch);
  if (!file) return tl::unexpected(file.error());
  const uint64_t bytes = options.bytes;
  const auto stopped = [&] { return options.stop != nullptr && *options.stop; };
  uint64_t window = std::min({bytes, memory_budget(), uint64_t{1} << 30});
  window = std::max<uint64_t>(window - window % (1 << 20), 1 << 20);
  auto memory = io::SharedMemory::make(window);
  if (!memory) return tl::unexpected(memory.error());
  fill(memory->bytes());
  DiskBench bench(std::move(*file), bytes, std::move(*memory));
  if (!zone.writable) return bench;
  const int fd = bench.file_.get();
  int reserved = 0;
  do {
    reserved = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  } while (reserved == EINTR && !stopped());
  if (reserved != 0 && !stopped()) return disk_error(reserved, "zone " + zone.path + ": test file");
  io::Engine engine({}, {});
  const auto start = std::chrono::steady_clock::now();
  const uint64_t step = std::min(window, kFileBytesMin);
  for (uint64_t at = 0; at < bytes; at += step) {
    if (stopped()) return fail(Code::kCancelled, "stopped before anything was measured");
    const std::chrono::duration<double> so_far = std::chrono::steady_clock::now() - start;
    if (options.seconds_max > 0 && at >= kFileBytesMin && so_far.count() > options.seconds_max) {
      bench.file_bytes_ = at;
      break;
    }
    const auto part = bench.memory_.bytes().first(std::min(step, bytes - at));
    auto written = engine.write(fd, at, part);
    if (!written) return fail(written.error(), "zone " + zone.path + ": test file");
    if (options.on_written) options.on_written(at + part.size());
  }
  if (::fsync(fd) != 0) return disk_error(errno, "zone " + zone.path + ": test file");
  return bench;
}

void DiskBench::make_cold() {
  ::syncfs(file_.get());
  ::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_DONTNEED);
  drop_reason_ = drop_page_cache();
}

Result<Sample> DiskBench::run(Direction direction, const io::EngineSettings& settings,
                              uint64_t bytes) {
  const bool write = direction == Direction::kWrite;
  bytes = std::min(bytes, file_bytes_);
  io::EngineOptions options;
  options.measure = true;
  // The direction that is not measured has no more than it must: rings and pinned pages cost.
  io::EngineSettings other;
  other.queue_depth = 1;
  other.registered = false;
  io::Engine engine(write ? other : settings, write ? settings : other, options);
  if (const auto report = engine.report(); report.io_uring && !report.ring_reason.empty()) {
    return fail(Code::kUnsupported, report.ring_reason);
  }
  make_cold();
  Sample sample;
  Result<void> moved;
  const double cpu_before = cpu_seconds();
  const auto start = std::chrono::steady_clock::now();
  while (moved && sample.bytes < bytes) {
    if (next_ >= file_bytes_) next_ = 0;
    const uint64_t length =
        std::min({bytes - sample.bytes, memory_.bytes().size(), file_bytes_ - next_});
    const auto window = memory_.bytes().first(length);
    // Registered within the time, as a mount has to: its memory is new for each copy.
    moved = write ? engine.write_pinned(file_.get(), next_, window)
                  : engine.read_pinned(file_.get(), next_, window);
    sample.bytes += length;
    next_ += length;
  }
  if (moved && write && ::fdatasync(file_.get()) != 0) moved = disk_error(errno, "fdatasync");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  sample.seconds = took.count();
  sample.cpu_s = cpu_seconds() - cpu_before;
  if (!moved) return tl::unexpected(moved.error());
  // A configuration that quietly became another one is not measured under its name.
  const auto report = engine.report();
  if (settings.direct && report.direct_calls == 0)
    return fail(Code::kUnsupported, report.direct_reason);
  if (settings.iopoll && !report.direct_reason.empty()) {
    return fail(Code::kUnsupported, "IOPOLL: " + report.direct_reason);
  }
  if (settings.registered && report.pinned_calls == 0) {
    return fail(Code::kUnsupported, report.registered_reason.empty()
                                        ? "fewer bytes than are worth registered buffers"
                                        : report.registered_reason);
  }
  const auto measured = engine.measured(write);
  sample.submit = measured.submit;
  sample.complete = measured.complete;
  return sample;
}

}  // namespace nexus::tune
