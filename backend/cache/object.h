// A cached object: one file of the tree whose bytes follow from origin files
// (format/object_layout.h).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/cache/prefetched.h"
#include "backend/format/object_layout.h"
#include "backend/origin/origin.h"
#include "backend/store/object_file.h"
#include "backend/store/store.h"

namespace nexus {

// The files that extents point into. Extent::file is an index into snapshot.files.
struct ModelSource {
  std::shared_ptr<Origin> origin;
  Snapshot snapshot;
};

// Bytes of an origin file that a layout was worked out from. Under strict integrity they are
// compared with the verified file before anything made from that layout is served.
struct HeaderDigest {
  uint32_t file = 0;
  ByteRange range;
  uint64_t xxh3 = 0;
};

struct ObjectSpec {
  std::string key;     // identity from content: same bytes in another revision are the same object
  std::string model;   // "org/name"
  std::string name;    // "org/name@commit/layer_0.pt"
  std::string sha256;  // of a blob, when the hub says
  std::string etag;
  std::string local_path;  // served from where it lies; layout is whole_file_layout
  std::shared_ptr<const ModelSource> source;
  ObjectLayout layout;
  // Complete or absent: never read before all of it is here (layer .pt, and files of one chunk).
  bool whole = false;
  std::vector<HeaderDigest> headers;
};

// The object that is origin file number `file` of a model, byte for byte.
ObjectSpec blob_spec(std::shared_ptr<const ModelSource> source, uint32_t file);

enum class ObjectState { kAbsent, kFetching, kResident };

// What xattrs and nexusctl say of an object.
struct ObjectInfo {
  ObjectState state = ObjectState::kAbsent;
  std::string tier;  // origin, ssd, ram
  int zone = -1;
  uint64_t size = 0;
  uint64_t bytes_cached = 0;
  uint64_t hits = 0;
  bool verified = false;  // sha256 of the whole file checked
  bool pinned = false;    // never evicted
  std::string error;      // the last failure, "" after a success
};

// The file_id() of the origin file that is the blob of this key.
uint64_t file_id_of_blob(const std::string& key);

// The key of a view: a hash of its layout and of the identity of the files it is made from, so that
// the same bytes in another revision are the same object. `kind` keeps formats apart.
std::string view_key(const std::string& kind, const ModelSource& source,
                     const ObjectLayout& layout);

struct Run;     // cache/flight.h
struct Waiter;  // cache/flight.h

// Owned by the Cache; fs and model hold shared_ptrs. Everything public is thread-safe.
class Object : public std::enable_shared_from_this<Object> {
 public:
  explicit Object(ObjectSpec spec);
  ~Object();
  const ObjectSpec& spec() const { return spec_; }
  uint64_t size() const { return spec_.layout.size; }
  // The file that holds the bytes here, or null while nothing is.
  std::shared_ptr<ObjectFile> file() const;
  // Its copy in the RAM tier, complete and checked, or null. Only while file() is not.
  std::shared_ptr<ObjectFile> ram_copy() const;
  // The copy in the RAM tier if there is one, else file().
  std::shared_ptr<ObjectFile> fastest_file() const;
  bool resident() const;  // complete, as far as the bitmap says
  ObjectInfo info() const;
  // What the object is to an eviction policy, the same in every run.
  uint64_t id() const { return id_; }
  // How many handles are open; an open object is not evicted.
  void add_open() {
    if (opens_.fetch_add(1, std::memory_order_relaxed) == 0) {
      last_use_.store(next_use_.fetch_add(1, std::memory_order_relaxed), std::memory_order_relaxed);
      uses_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  void drop_open() { opens_.fetch_sub(1, std::memory_order_relaxed); }

  // Never evicted; kept across restarts (Cache::pin).
  bool pinned() const { return pinned_.load(std::memory_order_relaxed); }
  // Whether read-ahead of layers brought bytes that nobody has read yet: those are evicted last.
  bool prefetched_unread() const { return prefetched_.any(); }

  // Where bytes of an origin file lie in this object, for filling one object from another.
  struct SourceExtent {
    uint64_t file_id = 0;  // hash of repo and content identity, the same across revisions
    uint64_t src = 0, length = 0, dest = 0;
  };
  const std::vector<SourceExtent>& source_extents() const;  // sorted by (file_id, src)
  uint64_t file_id(uint32_t file) const;  // of spec().source->snapshot.files[file]

 private:
  friend class Cache;
  friend struct Run;

  void set_error(const std::string& error);
  ObjectMeta meta() const;

  const ObjectSpec spec_;
  const uint64_t id_;
  static inline std::atomic<uint64_t> next_use_{1};  // puts the uses of all objects in order
  std::atomic<uint64_t> last_use_{0};
  std::atomic<uint64_t> uses_{0};  // from no handle open to one, in this run
  mutable std::once_flag extents_once_;
  mutable std::vector<SourceExtent> source_extents_;

  mutable std::mutex mutex_;  // guards the next four
  std::shared_ptr<ObjectFile> file_;
  std::shared_ptr<ObjectFile> ram_;
  std::string error_;
  std::optional<uint64_t> content_hash_;

  std::atomic<int> opens_{0};
  std::atomic<std::chrono::steady_clock::time_point> closed_at_{};  // the last handle
  std::atomic<bool> lingers_{false};  // a timer looks whether it stays closed (Cache::abandon)
  std::atomic<uint64_t> hits_{0};
  std::atomic<int64_t> last_access_ms_{0};
  std::atomic<bool> pinned_{false};
  std::atomic<bool> fetching_{false};
  std::atomic<int> waiting_{0};
  std::atomic<double> rate_{0};         // bytes per second, while fetching
  std::atomic<bool> digest_ok_{false};  // the origin's digest of the whole content was checked
  std::atomic<bool> trusted_{false};    // every present chunk was hashed in this process
  std::vector<std::atomic<uint64_t>> checked_;  // otherwise: which were, bit per chunk
  Prefetched prefetched_;

  // Core thread only.
  std::list<Waiter> waiters_;
  std::vector<std::shared_ptr<Run>> runs_;
  int awaited_blobs_ = 0;     // strict: sources that are still being fetched and verified
  int awaited_priority_ = 0;  // at which they are
  bool checking_digest_ = false;
  bool checking_chunks_ = false;
  bool promoting_ = false;  // a copy in the RAM tier is being made
  bool completed_ = false;  // the present file was announced as complete
  uint64_t charged_ = 0;    // what this object counts for in the tier's use
  int64_t charged_ms_ = 0;  // when it last grew; wall clock
  int64_t noted_ms_ = 0;    // when its uses were last written down; wall clock
  bool in_memory_ = false;  // the disk refused it: this object lives in RAM until it is dropped
  uint64_t rate_bytes_ = 0;
  std::chrono::steady_clock::time_point rate_since_{};
  std::vector<uint64_t> awaited_tickets_;  // of its waiters at awaited blobs
  bool awaited_given_up_ = false;          // they were cancelled, and have not all ended
};

}  // namespace nexus
