// Where models come from. One interface over a hub, a directory of pre-split layers behind HTTP,
// and a local directory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"

namespace nexus {

// More than any file of a hub; what a listing says beyond it is an error of that file.
inline constexpr uint64_t kFileBytesMax = 1ull << 43;  // 8 TiB

struct OriginFile {
  std::string path;    // relative to the model, '/'-separated, passed valid_model_path()
  uint64_t size = 0;   // bytes
  std::string etag;    // identity of the content: sha256 for LFS files, git oid, ETag; may be empty
  std::string sha256;  // 64 hex digits, or empty when the origin does not say
  std::string local_path;  // not empty: the bytes lie in this local file and are served in place
  std::string error =
      {};  // not empty: the listing is wrong about it; it is shown but cannot be read
};

struct Snapshot {
  std::string repo;      // as the origin calls it now (a renamed repo: the new name)
  std::string revision;  // as asked
  std::string
      commit;  // what `revision` resolved to; for base_url and local: a digest of the listing
  bool restricted = false;        // gated or private: readable by the token's owner only
  bool pre_split = false;         // files are layer_i.pt already (base_url)
  int64_t mtime_s = 0;            // last change, seconds since 1970; 0 when the origin does not say
  std::vector<OriginFile> files;  // sorted by path
  std::vector<std::string>
      complaints;  // names that were refused and why; logged and shown in .error
};

// A transfer in progress. cancel() may be called from any thread, any number of times, also after
// the end; on_done follows with kCancelled unless the transfer was over.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual void cancel() = 0;
  virtual void set_priority(int priority) = 0;  // lower goes first
};

struct ReadRequest {
  OriginFile file;
  ByteRange range;   // within file.size, not empty
  int priority = 0;  // lower goes first: 0 demand, 10 read-ahead
  uint64_t flow = 0;  // as HttpRequest::flow: reads for one object are one
  // Bytes in ascending order without gaps, starting at `offset` in the file. Called on the origin's
  // thread; an error ends the transfer. A retry resumes behind the bytes already delivered.
  std::function<Result<void>(uint64_t offset, std::span<const std::byte>)> sink;
  // Called exactly once, after the last sink call, with success only when all bytes were delivered.
  std::function<void(Result<void>)> on_done;
};

// Of reads, since the mount.
struct OriginActivity {
  uint64_t retries = 0;  // requests sent again after a failure
  uint64_t hedges = 0;   // second requests beside one that had gone quiet
};

// Thread safety: every method may be called from any thread; callbacks come from the origin's
// threads.
class Origin {
 public:
  virtual ~Origin() = default;
  // For people, redacted: "http://127.0.0.1:8000", "/data/models".
  virtual std::string describe() const = 0;
  // Resolves a repo at a revision and lists its files. kNotFound, kAccess, kOffline, kOrigin.
  virtual void load(const std::string& repo, const std::string& revision,
                    std::function<void(Result<Snapshot>)> done) = 0;
  // The snapshot gives commit and repo; the request's file must be one of its files.
  virtual std::shared_ptr<Transfer> read(const Snapshot& snapshot, ReadRequest request) = 0;
  // False while a circuit breaker or --offline keeps requests from being sent at all.
  virtual bool reachable() const = 0;
  virtual OriginActivity activity() const { return {}; }
};

// Whether an origin may name a file like this inside a model: relative, no "." or ".." or empty
// component, no control characters or NUL, valid UTF-8, a component at most 255 bytes, at most 4096
// in all.
bool valid_model_path(const std::string& path);

// Keeps the valid files, sorted and unique, with no file that is also a directory of another; what
// it drops goes into snapshot.complaints.
void sanitize_files(Snapshot& snapshot);

// "org/name" or "name": [A-Za-z0-9._-] components that do not start or end with '-' or '.', no "--"
// or "..".
bool valid_repo_name(const std::string& repo);

}  // namespace nexus
