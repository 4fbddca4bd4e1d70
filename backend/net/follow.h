// One request that follows redirects under the rules: at most 5, to http(s) only, and a token goes
// to its own scheme+host+port alone, so never to a CDN and never from https to http.
//
// Thread safety: cancel() and set_priority() from any thread; callbacks run on the client's thread
// (or inside begin() when it was cancelled before). on_done is called exactly once.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "backend/net/http_client.h"

namespace nexus {

struct Credentials {
  std::string token;   // empty: anonymous
  std::string origin;  // as Url::origin(): where the token may go
};

struct FollowOptions {
  // As for HttpClient::start(), but the callbacks see the final answer only.
  HttpRequest request;
  Credentials credentials;
  int priority = 0;
  struct Hop {
    const HttpResponse& response;
    const std::string& from;
    const std::string& target;
    bool relative;  // the Location names no host
  };
  // Judges each redirect before it is followed. False: this redirect is the final answer. May be
  // empty.
  std::function<Result<bool>(const Hop&)> on_redirect;
};

class FollowedRequest : public std::enable_shared_from_this<FollowedRequest> {
 public:
  static constexpr int kRedirectsMax = 5;

  FollowedRequest(HttpClient& http, FollowOptions options);
  // Once. No lock may be held.
  void begin();
  void cancel();
  void set_priority(int priority);
  // Where the request stands now. In callbacks only.
  const std::string& url() const { return url_; }

 private:
  void send();
  Result<void> on_headers(const HttpResponse& response);
  void on_done(Result<HttpResponse> result);

  HttpClient& http_;
  FollowOptions options_;
  // The steps of a request come one after the other; these belong to the current one.
  std::string url_;
  std::string next_url_;  // not empty: this answer is a redirect that is followed
  int redirects_ = 0;

  std::mutex mutex_;  // guards all below
  uint64_t id_ = 0;
  int priority_;
  bool cancelled_ = false;
};

}  // namespace nexus
