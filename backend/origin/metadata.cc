#include "backend/origin/metadata.h"

#include <algorithm>
#include <utility>

#include "backend/net/url.h"

namespace nexus {

MetadataFetch::MetadataFetch(std::shared_ptr<NetContext> net, MetadataRequest request)
    : net_(std::move(net)), request_(std::move(request)), priority_(request_.priority) {}

void MetadataFetch::begin() {
  begun_ = std::chrono::steady_clock::now();
  attempt();
}

void MetadataFetch::attempt() {
  FollowOptions options;
  options.request.method = request_.method;
  options.request.url = request_.url;
  options.request.range = request_.range;
  options.request.timeout = net_->policy.metadata_timeout;
  options.credentials = net_->credentials;
  options.on_redirect = request_.on_redirect;
  auto self = shared_from_this();
  options.request.on_headers = [self](const HttpResponse& r) { return self->on_headers(r); };
  options.request.on_body = [self](std::span<const std::byte> piece) -> Result<void> {
    if (self->body_.size() + piece.size() > self->request_.body_bytes_max) {
      return fail(Code::kOrigin, "an answer of more than " +
                                     std::to_string(self->request_.body_bytes_max) + " bytes");
    }
    self->body_.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return {};
  };
  options.request.on_unreachable = [self] { self->unreachable_ = true; };
  options.request.on_done = [self](Result<HttpResponse> r) { self->on_done(std::move(r)); };

  std::shared_ptr<FollowedRequest> follow;
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kWaiting) return;
    cancelled = cancelled_;
    if (!cancelled) {
      state_ = State::kOnWire;
      options.priority = priority_;
      follow = follow_ = std::make_shared<FollowedRequest>(net_->http, std::move(options));
    }
  }
  if (cancelled) {
    finish(fail(Code::kCancelled, "cancelled"));
    return;
  }
  body_.clear();
  refusal_.reset();
  unreachable_ = false;
  follow->begin();
}

void MetadataFetch::cancel() {
  std::shared_ptr<FollowedRequest> follow;
  bool waiting;
  {
    std::lock_guard lock(mutex_);
    if (state_ == State::kDone) return;
    cancelled_ = true;
    waiting = state_ == State::kWaiting;
    follow = follow_;
  }
  if (waiting) {
    finish(fail(Code::kCancelled, "cancelled"));
  } else if (follow) {
    follow->cancel();
  }
}

void MetadataFetch::set_priority(int priority) {
  std::shared_ptr<FollowedRequest> follow;
  {
    std::lock_guard lock(mutex_);
    priority_ = priority;
    follow = follow_;
  }
  if (follow) follow->set_priority(priority);
}

Result<void> MetadataFetch::on_headers(const HttpResponse& response) {
  net_->reach.answered(url_origin(follow_->url()));
  if (response.status >= 200 && response.status <= 299 && !request_.headers_only) return {};
  // The body is of no use; this drops it. on_done looks at refusal_.
  refusal_ = response;
  return fail(Code::kOrigin, "HTTP " + std::to_string(response.status));
}

void MetadataFetch::on_done(Result<HttpResponse> result) {
  const std::string url = follow_->url();
  if (result) {
    finish(MetadataAnswer{std::move(*result), url, std::move(body_)});
    return;
  }
  std::optional<std::chrono::milliseconds> asked;
  std::string why = result.error().what;
  if (result.error().code == Code::kCancelled) {
    finish(tl::unexpected(result.error()));
    return;
  }
  if (refusal_) {
    if (!retryable_status(refusal_->status)) {
      finish(MetadataAnswer{std::move(*refusal_), url, ""});
      return;
    }
    why = url_host(url) + ": HTTP " + std::to_string(refusal_->status);
    asked = server_wait(*refusal_, std::chrono::system_clock::now());
  } else if (result.error().code != Code::kOffline) {
    finish(tl::unexpected(result.error()));
    return;
  }
  if (unreachable_) net_->reach.failed(url_origin(url));

  ++tries_;
  const int limit =
      unreachable_ ? std::min(request_.tries, net_->policy.unreachable_tries) : request_.tries;
  const auto wait = retry_wait(net_->policy, tries_, random_jitter(), asked);
  const auto elapsed = std::chrono::steady_clock::now() - begun_;
  if (tries_ >= limit || elapsed + wait > request_.patience) {
    finish(fail(Code::kOffline, why));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    state_ = State::kWaiting;
  }
  // A cancel() from here on ends it at once; the timer then finds nothing to do.
  auto self = shared_from_this();
  net_->timers.post_after(
      wait, run_or_drop([self] { self->attempt(); },
                        [self] { self->finish(fail(Code::kCancelled, "the origin is closing")); }));
}

void MetadataFetch::finish(Result<MetadataAnswer> result) {
  std::function<void(Result<MetadataAnswer>)> done;
  {
    std::lock_guard lock(mutex_);
    if (state_ == State::kDone) return;
    state_ = State::kDone;
    done = std::move(request_.done);
    follow_ = nullptr;
  }
  if (done) done(std::move(result));
}

}  // namespace nexus
