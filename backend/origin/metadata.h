// Small requests (listings, HEAD) with redirects, retries and a cap on the body; the answer comes
// whole.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/net/follow.h"
#include "backend/origin/hedge.h"
#include "backend/origin/retry.h"

namespace nexus {

// What an origin and its transfers share. http and timers outlive it.
struct NetContext {
  HttpClient& http;
  Executor& timers;
  RetryPolicy policy;
  Credentials credentials;
  Reachability reach;
  StallLimit stall{};
  std::atomic<uint64_t> hedges{0}, retries{0};  // of reads, since the mount
  int max_connections = 0;  // of HttpRequest; set before the first request
};

struct MetadataAnswer {
  HttpResponse response;
  std::string url;  // after redirects
  std::string body;
};

struct MetadataRequest {
  std::string method = "GET";
  std::string url;
  std::optional<ByteRange> range;
  size_t body_bytes_max = 0;  // more is kOrigin; bodies of errors are not kept
  bool headers_only = false;  // the body of the answer is not wanted
  int tries = 2;
  // No try begins later than this after the first: a Retry-After beyond it ends the request.
  std::chrono::milliseconds patience{12000};
  int priority = 0;
  std::function<Result<bool>(const FollowOptions::Hop&)> on_redirect;  // see FollowOptions
  // Any status that is not worth a retry is an answer, 404 too; kOffline when the tries are used
  // up.
  std::function<void(Result<MetadataAnswer>)> done;
};

// Exactly one call of done; cancel() makes it kCancelled. All methods from any thread; done comes
// from the client's thread, from the timers' thread, or from inside begin() or cancel().
class MetadataFetch : public std::enable_shared_from_this<MetadataFetch> {
 public:
  MetadataFetch(std::shared_ptr<NetContext> net, MetadataRequest request);
  void begin();
  void cancel();
  void set_priority(int priority);

 private:
  enum class State { kWaiting, kOnWire, kDone };
  void attempt();
  Result<void> on_headers(const HttpResponse& response);
  void on_done(Result<HttpResponse> result);
  void finish(Result<MetadataAnswer> result);

  const std::shared_ptr<NetContext> net_;
  MetadataRequest request_;
  // The current step's.
  std::string body_;
  std::optional<HttpResponse> refusal_;  // an answer that is not 2xx
  int tries_ = 0;
  bool unreachable_ = false;
  std::chrono::steady_clock::time_point begun_;

  std::mutex mutex_;  // guards all below
  State state_ = State::kWaiting;
  bool cancelled_ = false;
  int priority_;
  std::shared_ptr<FollowedRequest> follow_;
};

}  // namespace nexus
