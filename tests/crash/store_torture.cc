//   store_torture CACHE_DIR SEED
//
// Creates, fills, replaces and removes objects of a store until it is killed (store_torture.h).
#include "tests/crash/store_torture.h"

#include <unistd.h>

#include <map>
#include <random>

#include "tests/unit/store_test_support.h"

int main(int argc, char** argv) {
  using namespace nexus;
  using namespace nexus::store_test;
  using crash_test::kTortureKeys;
  constexpr uint64_t kObjectChunks = 5;

  if (argc != 3) return 64;
  auto store = Store::open(options_at(argv[1]));
  if (!store) return 1;
  std::mt19937_64 random(std::stoull(argv[2]));
  std::map<uint32_t, std::pair<std::shared_ptr<ObjectFile>, uint32_t>> live;  // file, seed
  for (StoredObject& object : (*store)->take_objects()) {
    const auto key = static_cast<uint32_t>(std::stoul(object.meta.key));
    live[key] = {object.file, static_cast<uint32_t>(std::stoul(object.meta.sha256))};
  }
  const auto meta = [](uint32_t key, uint32_t seed) {
    ObjectMeta m = meta_of(std::to_string(key), kObjectChunks * kChunkBytes - 7);
    m.sha256 = std::to_string(seed);
    return m;
  };
  for (;;) {
    const auto key = static_cast<uint32_t>(random() % kTortureKeys);
    crash_test::TortureReport report{kTortureKeys, 0, 0};
    auto it = live.find(key);
    if (it == live.end() || random() % 16 == 0) {
      const auto seed = static_cast<uint32_t>(random());
      auto file = (*store)->create(meta(key, seed), random() % 2 == 0);
      if (!file) return 2;
      live[key] = {*file, seed};
      report = {key, 0, 0};
    } else if (random() % 16 == 0) {
      (*store)->remove(it->second.first);
      live.erase(it);
      report = {key, 0, 0};
    } else {
      auto& [file, seed] = it->second;
      if (!fill_chunk(*file, seed, random() % kObjectChunks)) return 3;
      (*store)->checkpoint(file, meta(key, seed));
      if (random() % 4 == 0) {
        (*store)->flush();
        report = {key, seed, file->present_chunks()};
      }
    }
    if (::write(crash_test::kTortureReports, &report, sizeof report) != sizeof report) return 4;
  }
}
