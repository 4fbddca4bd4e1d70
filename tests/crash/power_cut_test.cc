// The store on a disk that loses what was not synced when the power fails (disk_log.h): it opens by
// itself, serves true bytes only, and holds all that it had called durable.
//
// NEXUS_POWER_CUTS sets how many cuts are made of each load (100), NEXUS_SEED what they and the
// load depend on; with
// --gtest_repeat=N and other seeds it is a campaign.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "tests/crash/disk_log.h"
#include "tests/unit/store_test_support.h"

namespace nexus::crash_test {
namespace {

using store_test::fill_chunk;
using store_test::meta_of;
using store_test::TempDir;
using store_test::true_bytes;
namespace fs = std::filesystem;

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Where syncs cost nothing, if there is room; containers often have 64 MiB there.
std::string roomy_place() {
  struct statvfs st {};
  const bool roomy = ::statvfs("/dev/shm", &st) == 0 && st.f_bavail * st.f_frsize >= 512ull << 20;
  return roomy ? "/dev/shm" : "/tmp";
}

// One making of an object. Its size tells it from the others of its key.
struct Version {
  std::string key;
  uint64_t seed = 0, size = 0;
  std::vector<uint64_t> hashes = {};  // of its true chunks
};

// What the store had promised when so many operations were made, and what it was asked to forget.
struct Promise {
  size_t at = 0;
  std::map<std::string, std::pair<uint64_t, std::vector<bool>>> chunks =
      {};  // by key: the version's size, what it has
};
struct PinPromise {
  size_t begun = 0, at = 0;
  Pins pins = {};
};
struct Removal {
  size_t at = 0;
  std::string key;
};

class PowerCutTest : public testing::Test {
 protected:
  void SetUp() override {
    spdlog::set_level(spdlog::level::off);  // what is dropped at a start
    rng.seed(seed);
    RecordProperty("seed", std::to_string(seed));
  }
  void TearDown() override { spdlog::set_level(spdlog::level::info); }

  StoreOptions options_at(const std::string& root) const {
    StoreOptions options;
    options.cache_dir = root + "/cache";
    options.num_zones = 2;
    return options;
  }

  // --- The load ---

  struct Live {
    std::shared_ptr<ObjectFile> file;
    const Version* version;
  };

  const Version& new_version(const std::string& key) {
    Version version{key, rng(), 1 + rng() % (3 * kChunkBytes)};
    while (versions.contains({key, version.size})) ++version.size;
    for (uint64_t at = 0; at < version.size; at += kChunkBytes) {
      const auto bytes = true_bytes(version.seed, at, std::min(kChunkBytes, version.size - at));
      version.hashes.push_back(XXH3_64bits(bytes.data(), bytes.size()));
    }
    return versions[{key, version.size}] = version;
  }

  void begin_removal(const DiskLog& log, const std::string& key) {
    if (live.erase(key) != 0) removals.push_back({log.now(), key});
  }

  void fill(Store& store, Live& object, uint64_t chunk) {
    if (object.file->has(chunk)) return;
    ASSERT_TRUE(fill_chunk(*object.file, object.version->seed, chunk));
    store.checkpoint(object.file, meta_of(object.version->key, object.version->size));
  }

  void create(Store& store, const DiskLog& log) {
    const std::string key = "object-" + std::to_string(rng() % 8);
    begin_removal(log, key);
    const Version& version = new_version(key);
    const bool whole = rng() % 2 == 0;
    auto file = store.create(meta_of(key, version.size), whole);
    ASSERT_TRUE(file) << file.error().what;
    Live& object = live[key] = {*file, &version};
    for (uint64_t chunk = 0; chunk < (*file)->chunks(); ++chunk) {
      if (whole || rng() % 2 == 0) fill(store, object, chunk);
    }
  }

  void move(Store& store, Live& object) {
    if (!object.file->complete()) return;
    auto copy = store.begin_move(object.file, 1 - object.file->zone());
    ASSERT_TRUE(copy) << copy.error().what;
    for (uint64_t chunk = 0; chunk < (*copy)->chunks(); ++chunk) {
      ASSERT_TRUE(fill_chunk(**copy, object.version->seed, chunk));
    }
    if (rng() % 4 == 0) return store.discard_move(*copy);
    auto settled = store.settle_move(*copy, meta_of(object.version->key, object.version->size));
    ASSERT_TRUE(settled) << settled.error().what;
    ASSERT_TRUE(store.commit_move(object.file, *copy));
    object.file = *copy;
  }

  void flush(Store& store, const DiskLog& log) {
    store.flush();
    Promise promise{log.now()};
    for (const auto& [key, object] : live) {
      if (object.file->present_chunks() == 0) continue;  // there is nothing to keep
      auto& [size, present] = promise.chunks[key];
      size = object.version->size;
      for (uint64_t chunk = 0; chunk < object.file->chunks(); ++chunk)
        present.push_back(object.file->has(chunk));
    }
    promises.push_back(std::move(promise));
  }

  void pin(Store& store, const DiskLog& log) {
    Pins pins;
    for (uint64_t n = rng() % 5; n-- > 0;) pins.insert({"org/" + std::to_string(rng() % 100), ""});
    const size_t begun = log.now();
    const auto saved = store.save_pins(pins);
    ASSERT_TRUE(saved) << saved.error().what;
    pinned.push_back({begun, log.now(), std::move(pins)});
  }

  Live& any() {
    return std::next(live.begin(), static_cast<ptrdiff_t>(rng() % live.size()))->second;
  }

  void work(Store& store, const DiskLog& log, int steps) {
    for (int step = 0; step < steps && !HasFatalFailure(); ++step) {
      const uint64_t dice = rng() % 100;
      if (live.empty() || dice < 35) {
        create(store, log);
      } else if (dice < 55) {
        Live& object = any();
        fill(store, object, rng() % object.file->chunks());
      } else if (dice < 62) {
        const Live object = any();
        begin_removal(log, object.version->key);
        store.remove(object.file);
      } else if (dice < 72) {
        move(store, any());
      } else if (dice < 80) {
        pin(store, log);
      } else if (dice < 85) {
        store.save_model({"org/m" + std::to_string(rng() % 4), "main", "abc",
                          std::string(1 + rng() % 20'000, 's')});
        store.save_header("header", std::string(1 + rng() % 50'000, 'h'));
      } else if (dice < 87) {
        (void)store.compact();
      } else {
        flush(store, log);
      }
    }
  }

  // What an earlier run left and this one knows of.
  void adopt(Store& store) {
    for (StoredObject& object : store.take_objects()) {
      const Version& version = versions.at({object.meta.key, object.meta.size});
      live[object.meta.key] = {object.file, &version};
    }
  }

  // --- After a cut ---

  // "" or what is wrong with what lies in `root` after a cut at `at`.
  std::string trouble(const std::string& root, size_t at) {
    auto opened = Store::open(options_at(root));
    if (!opened) return "the store does not open: " + opened.error().what;
    Store& store = **opened;
    std::map<std::string, StoredObject> objects;
    for (StoredObject& object : store.take_objects()) {
      const auto version = versions.find({object.meta.key, object.meta.size});
      if (version == versions.end()) return object.meta.key + ": was never made with this size";
      for (uint64_t chunk = 0; chunk < object.file->chunks(); ++chunk) {
        if (!object.file->has(chunk)) continue;
        const std::string name = object.meta.key + ", chunk " + std::to_string(chunk);
        if (object.file->chunk_hash(chunk) != version->second.hashes[chunk])
          return name + ": a wrong hash";
        if (auto right = object.file->verify_chunk(chunk); !right)
          return name + ": " + right.error().what;
      }
      objects[object.meta.key] = std::move(object);
    }
    const Promise* promise = nullptr;
    for (const Promise& one : promises) {
      if (one.at <= at) promise = &one;
    }
    if (promise != nullptr) {
      if (auto lost = lost_of(*promise, at, objects); !lost.empty()) return lost;
    }
    const Pins pins = store.load_pins();
    bool right = pins.empty();
    for (const PinPromise& one : pinned) {
      if (one.at <= at) right = pins == one.pins;
      if (one.begun <= at && one.at > at) right = right || pins == one.pins;  // cut off in it
    }
    if (!right) return "pins are lost";
    return usable(store, root);
  }

  std::string lost_of(const Promise& promise, size_t at,
                      const std::map<std::string, StoredObject>& objects) const {
    std::set<std::string> removed;
    for (const Removal& removal : removals) {
      if (removal.at >= promise.at && removal.at <= at) removed.insert(removal.key);
    }
    for (const auto& [key, held] : promise.chunks) {
      if (removed.contains(key)) continue;
      const auto found = objects.find(key);
      if (found == objects.end()) return key + " is lost though flushed";
      if (found->second.meta.size != held.first) return key + " is an older one than was flushed";
      for (uint64_t chunk = 0; chunk < held.second.size(); ++chunk) {
        if (held.second[chunk] && !found->second.file->has(chunk)) {
          return key + ": chunk " + std::to_string(chunk) + " is lost though flushed";
        }
      }
    }
    return "";
  }

  // It takes another object, and the next start finds that.
  std::string usable(Store& store, const std::string& root) {
    if (rng() % 8 != 0) return "";
    auto file = store.create(meta_of("another", 1000), true);
    if (!file) return "nothing can be added: " + file.error().what;
    if (!fill_chunk(**file, 5, 0)) return "nothing can be written";
    store.checkpoint(*file, meta_of("another", 1000));
    store.flush();
    store.close();
    auto again = Store::open(options_at(root));
    if (!again) return "the store does not open again: " + again.error().what;
    for (const StoredObject& object : (*again)->take_objects()) {
      if (object.meta.key == "another" && object.file->complete()) return "";
    }
    return "what was added is not found";
  }

  // A load, and cuts of it at random moments. The directories are left to the caller.
  void load(const std::string& root, int steps, std::unique_ptr<DiskLog>& log) {
    log = std::make_unique<DiskLog>(root);
    for (int run = 0; run < 2 && !HasFatalFailure();
         ++run) {  // the second finds what the first left
      auto store = Store::open(options_at(root));
      ASSERT_TRUE(store) << store.error().what;
      live.clear();
      adopt(**store);
      work(**store, *log, steps);
      flush(**store, *log);
      live.clear();
      (*store)->close();
    }
    log->stop();
    ASSERT_EQ(log->difference(), "") << "something was not logged";
  }

  std::string trouble_after_cut(const DiskLog& log, size_t at, const Cut& cut) {
    return trouble_after_cut(log, at, cut, at);
  }
  // The load had made `loaded` operations then.
  std::string trouble_after_cut(const DiskLog& log, size_t at, const Cut& cut, size_t loaded) {
    const TempDir target(roomy_place());
    log.rebuild(at, cut, rng, target.path());
    return trouble(target.path(), loaded);
  }

  static std::string described(size_t at, const Cut& cut) {
    return "cut after operation " + std::to_string(at) + ", bytes kept " +
           std::to_string(cut.bytes_kept) + ", names kept " +
           (cut.names_in_order ? "in order" : std::to_string(cut.names_kept));
  }

  const uint64_t seed = number_from("NEXUS_SEED", 1);
  const uint64_t cuts = number_from("NEXUS_POWER_CUTS", 100);
  Rng rng;
  std::map<std::pair<std::string, uint64_t>, Version> versions;  // by key and size
  std::map<std::string, Live> live;
  std::vector<Promise> promises;
  std::vector<Removal> removals;
  std::vector<PinPromise> pinned;
};

TEST_F(PowerCutTest, AtAnyMomentTheCacheOpensAndHoldsWhatWasFlushedAndTrueBytesAlone) {
  const TempDir root(roomy_place());
  std::unique_ptr<DiskLog> log;
  load(root.path(), 60, log);
  ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  for (uint64_t n = 0; n < cuts; ++n) {
    const size_t at = rng() % (log->now() + 1);
    const Cut cut = random_cut(rng);
    ASSERT_EQ(trouble_after_cut(*log, at, cut), "") << described(at, cut) << ", seed " << seed;
  }
}

// The start after a cut is cut off itself.
TEST_F(PowerCutTest, AStartThatRecoversMayBeCutOffToo) {
  const TempDir root(roomy_place());
  std::unique_ptr<DiskLog> log;
  load(root.path(), 40, log);
  ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  for (uint64_t n = 0; n < cuts / 8; ++n) {
    const size_t at = rng() % (log->now() + 1);
    const Cut cut = random_cut(rng);
    const TempDir once(roomy_place());
    log->rebuild(at, cut, rng, once.path());
    DiskLog recovery(once.path());
    auto store = Store::open(options_at(once.path()));
    ASSERT_TRUE(store) << store.error().what;
    (*store)->close();
    store->reset();
    recovery.stop();
    for (int again = 0; again < 4; ++again) {
      const size_t second = rng() % (recovery.now() + 1);
      const Cut other = random_cut(rng);
      ASSERT_EQ(trouble_after_cut(recovery, second, other, at), "")
          << described(at, cut) << ", then " << described(second, other) << ", seed " << seed;
    }
  }
}

// That this test can fail: a disk whose syncs do nothing loses what was flushed.
TEST_F(PowerCutTest, ADiskThatLiesIsFoundOut) {
  const TempDir root(roomy_place());
  std::unique_ptr<DiskLog> log;
  load(root.path(), 40, log);
  ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
  ASSERT_FALSE(promises.empty() || promises.back().chunks.empty()) << "seed " << seed;
  Cut cut{0, 1};
  cut.syncs_lie = true;
  EXPECT_NE(trouble_after_cut(*log, log->now(), cut), "") << "seed " << seed;
}

}  // namespace
}  // namespace nexus::crash_test
