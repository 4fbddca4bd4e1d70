// What people and programs may ask of the cache beside reading: the words of Cache's control calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/store/pins.h"
#include "backend/store/store.h"

namespace nexus {

// Which objects are meant. Empty members match everything.
struct ObjectFilter {
  std::string model;        // "org/name"
  std::string name_prefix;  // "org/name@commit/", when one commit is meant
  std::string file;         // path in the model: "layer_3.pt"
  // Of an object's ObjectSpec::model and ::name.
  bool matches(const std::string& object_model, const std::string& object_name) const;
};

// "org/name@commit/layers/layer_0.safetensors" of model "org/name" -> "layers/layer_0.safetensors".
std::string file_of_name(const std::string& model, const std::string& name);

struct ObjectSpec;
// The pin of one file, under the name that the cache knows it by.
Pin pin_of(const ObjectSpec& spec);
Pin pin_of(const std::string& model, const std::string& name);  // of the spec

struct Dropped {
  uint64_t objects = 0, bytes = 0;
};

struct VerifyOptions {
  ObjectFilter filter;
  // Also compares complete files with the digest that the hub gave for them.
  bool origin = false;
};

struct VerifyProgress {
  uint64_t objects_done = 0, objects_total = 0;
  uint64_t bytes_done = 0, bytes_total = 0;
};

struct VerifyReport {
  uint64_t objects = 0, bytes = 0;   // looked at
  uint64_t matched_origin = 0;       // files whose digest is the hub's
  std::vector<std::string> corrupt;  // "name: what is wrong"; all of them were dropped
};

// Objects whose file went to another zone.
struct MigrationReport {
  struct Moved {
    std::string name;
    uint64_t bytes = 0;
    std::string from, to;            // the zones' paths
    std::string from_tier, to_tier;  // "nvme", "ssd", "nfs", "hdd"
  };
  std::vector<Moved> moved;
  std::vector<std::string> failed;  // "name: why it stayed where it was"
};

struct OptimizeReport {
  VerifyReport verified;
  MigrationReport rebalanced;
  Store::Orphans orphans;
  Store::Compaction catalog;
};

// Something long that the cache does for someone. Thread-safe.
class CacheJob {
 public:
  // It ends soon with kCancelled, unless it has ended already.
  void cancel() { cancelled_ = true; }
  bool cancelled() const { return cancelled_; }

 private:
  std::atomic<bool> cancelled_{false};
};

// The background scrub: where its pass is, and what it found since the mount.
struct ScrubState {
  bool on = false, running = false;
  uint64_t passes = 0;       // ended
  VerifyProgress progress;   // of the pass that runs, else of the last
  int64_t last_pass_ms = 0;  // wall clock of the last one's end, an earlier run's too; 0: never
  uint64_t checked_bytes = 0, corrupt = 0;  // of all passes
};

// What verify() looks at: a file, and the object or the entry of an earlier run that it belongs to.
class Object;
struct VerifyTarget {
  std::shared_ptr<Object> object;  // or null, and
  std::string key;                 // of an object that no model has named since the start
  std::string model, name;
  std::string digest;  // what the hub says: SHA-256 or git object id, or ""
  bool git = false;
  std::shared_ptr<ObjectFile> file;
};

}  // namespace nexus
