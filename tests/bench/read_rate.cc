// Reads a file in one way and prints how many seconds each round took.
//
//   read_rate MODE ROUNDS FILE
//
//   read    open, read(2) of 1 MiB to the end, close
//   direct  the same with O_DIRECT
//   mmap    map, touch every page, unmap
//   random  20,000 pages of a fresh mapping, touched in random order
//   open    open + close, the median of 2,000, as one round
//   align   as mmap, the mapping placed on 2 MiB
//
// The rounds run on each processor in turn: which of them takes the disk's interrupts decides O_DIRECT by a factor of 1.7.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr size_t kBuffer = 1 << 20, kPage = 4096, kHuge = 2 << 20;
constexpr int kTouches = 20000, kOpens = 2000;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int open_file(const char* path, int flags) {
  const int fd = ::open(path, O_RDONLY | flags);
  if (fd < 0) fail(path);
  return fd;
}

size_t size_of(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) fail("fstat");
  return static_cast<size_t>(st.st_size);
}

void read_all(const char* path, int flags) {
  static void* const buffer = std::aligned_alloc(kHuge, kHuge);
  const int fd = open_file(path, flags);
  ssize_t n = 0;
  while ((n = ::read(fd, buffer, kBuffer)) > 0) continue;
  if (n < 0) fail("read");
  ::close(fd);
}

const volatile char* map(int fd, size_t size, bool aligned) {
  void* place = nullptr;
  if (aligned) {
    auto free = reinterpret_cast<uintptr_t>(
        ::mmap(nullptr, size + kHuge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    place = reinterpret_cast<void*>((free + kHuge - 1) / kHuge * kHuge);
  }
  void* const mapped =
      ::mmap(place, size, PROT_READ, MAP_SHARED | (aligned ? MAP_FIXED : 0), fd, 0);
  if (mapped == MAP_FAILED) fail("mmap");
  return static_cast<const volatile char*>(mapped);
}

double touch_all(const char* path, bool aligned) {
  const int fd = open_file(path, 0);
  const size_t size = size_of(fd);
  const double start = now();
  const volatile char* bytes = map(fd, size, aligned);
  for (size_t at = 0; at < size; at += kPage) (void)bytes[at];
  ::munmap(const_cast<char*>(bytes), size);
  const double seconds = now() - start;
  ::close(fd);
  return seconds;
}

double touch_random(const char* path) {
  const int fd = open_file(path, 0);
  const size_t size = size_of(fd);
  const volatile char* bytes = map(fd, size, false);
  const double start = now();
  uint64_t random = 88172645463325252ull;
  for (int i = 0; i < kTouches; ++i) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    (void)bytes[random % (size / kPage) * kPage];
  }
  const double seconds = now() - start;
  ::munmap(const_cast<char*>(bytes), size);
  ::close(fd);
  return seconds;
}

double open_close(const char* path) {
  std::vector<double> seconds;
  for (int i = 0; i < kOpens; ++i) {
    const double start = now();
    ::close(open_file(path, 0));
    seconds.push_back(now() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kOpens / 2, seconds.end());
  return seconds[kOpens / 2];
}

void run_on(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (::sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
}

// Those that the process may run on.
std::vector<int> processors() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) fail("sched_getaffinity");
  std::vector<int> all;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) all.push_back(i);
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string mode = argv[1];
  const char* path = argv[3];
  const int rounds = std::atoi(argv[2]);
  const std::vector<int> places = processors();
  for (int round = 0; round < rounds; ++round) {
    if (rounds > 1) run_on(places[static_cast<size_t>(round) % places.size()]);
    const double start = now();
    double seconds = -1;
    if (mode == "read") read_all(path, 0);
    if (mode == "direct") read_all(path, O_DIRECT);
    if (mode == "mmap" || mode == "align") seconds = touch_all(path, mode == "align");
    if (mode == "random") seconds = touch_random(path);
    if (mode == "open") seconds = open_close(path);
    std::printf("%.9f\n", seconds < 0 ? now() - start : seconds);
  }
  return 0;
}
