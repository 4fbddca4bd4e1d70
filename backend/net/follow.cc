#include "backend/net/follow.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "backend/net/url.h"

namespace nexus {

FollowedRequest::FollowedRequest(HttpClient& http, FollowOptions options)
    : http_(http),
      options_(std::move(options)),
      url_(options_.request.url),
      priority_(options_.priority) {}

void FollowedRequest::begin() {
  send();
}

void FollowedRequest::send() {
  HttpRequest request = options_.request;  // all of it, but for where it goes and who hears of it
  request.url = url_;
  const Credentials& credentials = options_.credentials;
  if (!credentials.token.empty() && url_origin(url_) == credentials.origin) {
    request.headers.push_back("Authorization: Bearer " + credentials.token);
  }
  auto self = shared_from_this();
  request.on_headers = [self](const HttpResponse& response) { return self->on_headers(response); };
  request.on_done = [self](Result<HttpResponse> result) { self->on_done(std::move(result)); };

  int priority;
  bool stop;
  {
    std::lock_guard lock(mutex_);
    priority = priority_;
    stop = cancelled_;
  }
  if (stop) {
    on_done(fail(Code::kCancelled, url_host(url_) + ": cancelled"));
    return;
  }
  // No lock across start(): a closed client answers inside it.
  const uint64_t id = http_.start(std::move(request), priority);
  bool moved;
  {
    std::lock_guard lock(mutex_);
    // A quick answer may have sent the next hop already; ids grow, and the newest is the one to
    // cancel.
    id_ = std::max(id_, id);
    stop = cancelled_;
    moved = priority_ != priority;
    priority = priority_;
  }
  if (stop) {
    http_.cancel(id);
  } else if (moved) {
    http_.set_priority(id, priority);
  }
}

void FollowedRequest::cancel() {
  uint64_t id;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    id = id_;
  }
  if (id != 0) http_.cancel(id);
}

void FollowedRequest::set_priority(int priority) {
  uint64_t id;
  {
    std::lock_guard lock(mutex_);
    priority_ = priority;
    id = id_;
  }
  if (id != 0) http_.set_priority(id, priority);
}

Result<void> FollowedRequest::on_headers(const HttpResponse& response) {
  const int status = response.status;
  const bool redirect =
      status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
  const auto location = response.header("location");
  if (redirect && location) {
    auto target = join_url(url_, *location);
    if (!target) return fail(target.error(), url_host(url_));
    if (options_.on_redirect) {
      auto follow =
          options_.on_redirect({response, url_, *target, !is_absolute_reference(*location)});
      if (!follow) return tl::unexpected(follow.error());
      if (!*follow) return {};
    }
    if (++redirects_ > kRedirectsMax) {
      return fail(Code::kOrigin, url_host(url_) + ": more than 5 redirects");
    }
    next_url_ = std::move(*target);
    return fail(Code::kOrigin, "redirected");  // ends this hop without its body
  }
  if (options_.request.on_headers) return options_.request.on_headers(response);
  return {};
}

void FollowedRequest::on_done(Result<HttpResponse> result) {
  const bool cancelled = !result && result.error().code == Code::kCancelled;
  if (next_url_.empty() || cancelled) {
    // Moved out first: the callback may hold what holds this.
    auto done = std::move(options_.request.on_done);
    options_.request = HttpRequest{};
    options_.on_redirect = nullptr;
    if (done) done(std::move(result));
    return;
  }
  url_ = std::exchange(next_url_, "");
  send();
}

}  // namespace nexus
