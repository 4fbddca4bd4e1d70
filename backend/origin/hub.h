// A Hugging Face compatible hub. Source of the protocol: huggingface_hub, hub-docs;
// shared/formats.md.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "backend/base/executor.h"
#include "backend/net/http_client.h"
#include "backend/origin/hedge.h"
#include "backend/origin/origin.h"

namespace nexus {

struct HubOptions {
  std::string endpoint;   // "https://host[:port][/prefix]", no trailing slash
  std::string token;      // empty: anonymous. Sent to the endpoint's own scheme+host+port only.
  bool offline = false;   // never touch the network
  std::string hub_cache;  // a huggingface_hub cache directory, read-only, used first; or ""
  int retry_max = 5;      // tries of one request in all
  std::chrono::milliseconds retry_base{1000};         // the first wait between tries
  std::chrono::milliseconds out_of_reach{5000};       // an unreachable host is not asked that long
  std::chrono::milliseconds metadata_timeout{30000};  // of one try of a listing or a HEAD
  int max_connections = 0;     // to one host at a time; 0: as the HttpClient is told
  StallLimit::Bounds stall{};  // when a quiet request is hedged
  // Looking into hub_cache and reading from it runs here, as the disk may be slow. Null: it runs on
  // `timers`, and reads of its files go to the network.
  ThreadPool* disk = nullptr;
};

// load(): GET /api/models/{repo}/revision/{rev}?blobs=true, and the paged tree when that lists no
//   sizes. Files found in hub_cache under snapshots/<commit>/ with the right size get local_path.
//   When the hub is out of reach (or offline) and hub_cache has refs/<rev>, the snapshot is what
//   the cache holds. Two tries at most; a dead hub is reported soon.
// read(): resolve -> redirect -> range requests against the signed location, which all reads of a
//   file share and which is renewed on 403. Every answer is checked (206, Content-Range, length,
//   total size; at the hub X-Linked-Etag or ETag against file.etag, X-Linked-Size, X-Repo-Commit;
//   at the CDN that its ETag stays the same). Retries with backoff 1..8 s and jitter, Retry-After
//   and RateLimit honoured, resuming behind the bytes already delivered.
// A host that could not be reached at all is not asked again for a few seconds (kOffline at once),
// so that a dead origin costs one timeout, not one a request. `http`, `timers` and `disk` outlive
// the origin; `timers` runs the retries.
std::shared_ptr<Origin> make_hub_origin(HubOptions options, HttpClient& http, Executor& timers);

// Parsers of the hub's answers, for tests and fuzzing. Any bytes may come in. A file whose entry
// makes no sense is kept with size 0 and its `error`, and named in the complaints.
Result<Snapshot> parse_model_info(std::string_view json, const std::string& repo,
                                  const std::string& revision);
// Appends the entries of one page of the tree listing to snapshot.files.
Result<void> parse_tree_page(std::string_view json, Snapshot& snapshot);
// Whether every file of parse_model_info() came with a size; if not, the tree has to be asked.
// (complete is false as well when there was no list at all.)
struct ModelInfo {
  Snapshot snapshot;
  bool complete = false;
};
Result<ModelInfo> parse_model(std::string_view json, const std::string& repo,
                              const std::string& revision);
// The target of rel="next" in a Link header, or "".
std::string next_page(std::string_view link_header);

}  // namespace nexus
