// One read of one range: resolve, ask, check, retry, resume. Used by the hub and by base_url.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "backend/origin/metadata.h"
#include "backend/origin/origin.h"

namespace nexus {

// Where a file is asked for.
struct Location {
  std::string url;
  bool renewable = false;  // came out of a redirect: asking again may give another
};

struct FileSourceOptions {
  std::string url;    // where every resolution starts
  std::string label;  // "fetch org/m/model.safetensors", for messages
  uint64_t size = 0;
  bool resolve = false;  // ask `url` by HEAD for the location first, and keep that
  bool html_expected = false;
  // Judges an answer (redirects too) of `url` or of a place on the same origin: the hub's own
  // headers. May be empty.
  std::function<Result<void>(const HttpResponse&)> check_entry;
  bool may_change = false;  // in place: another size is kStale, not a wrong answer
  // Judges the final answer's ETag; `normal` is empty when there is none. May be empty.
  std::function<Result<void>(const std::string& normal)> check_etag;
  // The meaning of a status from 400 up that is not worth a retry.
  std::function<Error(const HttpResponse&)> error_of;
};

// What all reads of one file share: the resolved location, kept until it fails, and the one
// resolution in flight. Thread-safe; callbacks run without a lock, maybe inside the call.
class FileSource : public std::enable_shared_from_this<FileSource> {
 public:
  FileSource(std::shared_ptr<NetContext> net, FileSourceOptions options);

  using Located = std::function<void(Result<Location>)>;
  // Returns an id for leave(), 0 when `located` has been called already.
  uint64_t locate(int priority, Located located);
  // `located` is not called any more, unless it is being called. The last to leave ends the
  // resolution.
  void leave(uint64_t waiter);
  void hurry(int priority);  // a waiter became more urgent
  // `location` does not work any more.
  void drop(const Location& location);
  // An answer of `location` carries this ETag; kOrigin when an earlier one carried another.
  Result<void> check_location_etag(const Location& location, const std::string& etag);

  NetContext& net() { return *net_; }
  const FileSourceOptions& options() const { return options_; }
  // check_entry for answers that come from the entry's own origin.
  Result<void> check_if_entry(const HttpResponse& response, const std::string& from) const;

 private:
  void resolved(uint64_t flight_id, Result<Location> result);

  const std::shared_ptr<NetContext> net_;
  const FileSourceOptions options_;
  const std::string entry_origin_;

  std::mutex mutex_;   // guards all below
  Location location_;  // url empty: not known
  std::string location_etag_;
  std::shared_ptr<MetadataFetch> flight_;
  uint64_t flight_id_ = 0;
  int flight_priority_ = 0;
  std::map<uint64_t, Located> waiters_;
  uint64_t next_waiter_ = 1;
};

struct RangeReadHooks {
  bool hedge = false;  // see HttpRequest::hedge
  // True when a request of the read goes on the wire, false when it is over. Called on the client's
  // thread, or inside a call of the read; may be empty.
  std::function<void(bool)> on_wire = {};
};

// Starts a read; `request.range` is within the file. read_hedged() (hedge.h) is what origins use.
std::shared_ptr<Transfer> read_range(std::shared_ptr<FileSource> source, ReadRequest request,
                                     RangeReadHooks hooks = {});

// A transfer that has failed before it began; on_done runs on `timers`.
std::shared_ptr<Transfer> failed_read(ReadRequest request, Error error, Executor& timers);

}  // namespace nexus
