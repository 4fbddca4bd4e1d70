// Fills a cache_dir with small complete objects through the store, as a daemon would leave it:
//   make_objects CACHE_DIR COUNT
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

#include "backend/store/store.h"

// In the place of the C library's: 100,000 objects would wait for the disk a quarter of an hour,
// and nothing here is to survive a power loss.
extern "C" int fsync(int) {
  return 0;
}
extern "C" int fdatasync(int) {
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "make_objects CACHE_DIR COUNT\n"), 2;
  nexus::StoreOptions options;
  options.cache_dir = argv[1];
  auto store = nexus::Store::open(options);
  if (!store) return std::fprintf(stderr, "%s\n", store.error().what.c_str()), 1;
  const long count = std::atol(argv[2]);
  for (long n = 0; n < count; ++n) {
    nexus::ObjectMeta meta;
    // A hundred files a model.
    meta.model = "org/m" + std::to_string(n / 100);
    meta.name = meta.model + "@" + std::string(40, 'c') + "/f" + std::to_string(n % 100);
    meta.key = "blob:" + meta.model + "#" + std::to_string(n) + "#16";
    meta.size = 16;
    meta.last_access_ms = 1 + n;
    auto file = (*store)->create(meta, true);
    if (!file) return std::fprintf(stderr, "%s\n", file.error().what.c_str()), 1;
    const std::string bytes = std::to_string(1'000'000'000'000'000 + n);
    if (!(*file)->write(0, std::as_bytes(std::span(bytes))) || !(*file)->seal_chunk(0)) return 1;
    (*store)->checkpoint(*file, meta);
    if (n % 1000 == 999) (*store)->flush();
  }
  (*store)->close();
}
