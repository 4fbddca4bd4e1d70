// How a copy into the RAM tier is read best: a file, past the page cache, by the steps and readers
// of a promotion, each step hashed:
//   promote_rate FILE [ROUNDS] [BLOCK_KIB] [DEPTH] [THREADS]
// plain: plain requests. pinned: each step's memory registered for its call. bounce: into memory
// that was registered once, copied from there.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "backend/cache/promotion_plan.h"
#include "backend/io/engine.h"
#include "backend/io/memory.h"
#include "backend/io/zone_engines.h"
#include "backend/ram/ram_tier.h"

namespace {

using Clock = std::chrono::steady_clock;
enum Mode { kPlain, kPinned, kBounce, kModes };
constexpr const char* kNames[] = {"plain", "pinned", "bounce"};

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "promote_rate: %s\n", why.c_str());
  std::exit(1);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int at, unsigned usual) {
    return argc > at ? static_cast<unsigned>(std::atoi(argv[at])) : usual;
  };
  struct stat st {};
  const int fd = argc > 1 ? ::open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0 || ::fstat(fd, &st) != 0) die("FILE [ROUNDS] [BLOCK_KIB] [DEPTH] [THREADS]");
  const auto size = static_cast<uint64_t>(st.st_size);
  nexus::io::EngineSettings settings;
  settings.block_size = uint64_t{number(3, 1024)} << 10;
  settings.queue_depth = number(4, 16);
  settings.threads = number(5, 1);
  const auto plan =
      nexus::plan_promotion({settings.block_size, nexus::io::in_flight_bytes(settings)}, size);
  std::string reason;
  const auto tier = nexus::RamTier::open({size + (64 << 20)}, &reason);
  if (!tier) die(reason);
  std::vector<double> gbps[kModes], cpu[kModes];
  for (unsigned round = 0; round < number(2, 5); ++round) {
    for (unsigned turn = 0; turn < kModes; ++turn) {
      const auto mode = static_cast<Mode>((round + turn) % kModes);
      settings.registered = mode != kPlain;
      nexus::io::Engine engine(settings, settings);
      std::vector<nexus::io::SharedMemory> windows;
      for (int i = 0; mode == kBounce && i < plan.readers; ++i) {
        windows.push_back(*nexus::io::SharedMemory::make(plan.step_bytes));
        if (!engine.register_memory(windows.back().bytes())) die("not registered");
      }
      ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      const double cpu_before = cpu_seconds();
      const auto start = Clock::now();
      auto copy = tier->create("copy", size, nexus::RamTier::Memory::kByPopulate);
      if (!copy) die(copy.error().what);
      auto mapping = nexus::RamMapping::map(**copy);
      std::atomic<uint64_t> next{0}, hash{0};
      const auto reader = [&](int id) {
        for (uint64_t at; (at = next.fetch_add(plan.step_bytes)) < size;) {
          const uint64_t length = std::min(plan.step_bytes, size - at);
          if (!mapping->populate(at, length)) die("no memory");
          const auto into = mapping->bytes().subspan(at, length);
          const auto window =
              mode == kBounce ? windows[static_cast<size_t>(id)].bytes().first(length) : into;
          const auto read =
              mode == kPinned ? engine.read_pinned(fd, at, into) : engine.read(fd, at, window);
          if (!read) die(read.error().what);
          if (mode == kBounce) std::memcpy(into.data(), window.data(), length);
          hash ^= XXH3_64bits(into.data(), length);
        }
      };
      std::vector<std::thread> readers;
      for (int i = 0; i < plan.readers; ++i) readers.emplace_back(reader, i);
      for (auto& one : readers) one.join();
      const std::chrono::duration<double> took = Clock::now() - start;
      gbps[mode].push_back(static_cast<double>(size) / 1e9 / took.count());
      cpu[mode].push_back((cpu_seconds() - cpu_before) / (static_cast<double>(size) / 1e9));
      const auto report = engine.report();
      if ((mode == kPlain) != (report.fixed_requests == 0))
        die("not as asked: " + report.registered_reason);
    }
  }
  for (int mode = 0; mode < kModes; ++mode) {
    std::printf("%-7s %6.2f GB/s  %6.3f CPU s/GB  (%s)\n", kNames[mode], median(gbps[mode]),
                median(cpu[mode]), tier->kind().c_str());
  }
}
