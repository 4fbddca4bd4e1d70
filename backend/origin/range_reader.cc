#include "backend/origin/range_reader.h"

#include <algorithm>
#include <utility>

#include "backend/net/url.h"
#include "backend/origin/answer_check.h"

namespace nexus {

namespace {

constexpr int kRenewalsMax = 3;
// A try that brought this much earns the read its tries back: many GB over a bad line end well, and
// a server that hands out single bytes does not keep a reader for ever.
constexpr uint64_t kProgressBytes = 1 << 20;

std::string shown_range(const ByteRange& range) {
  return "[" + std::to_string(range.offset) + ", " + std::to_string(range.end()) + ")";
}

// The steps of a read (locate, request, retry) come one after the other, on the client's thread or
// the timers'; what only the current step touches needs no lock. cancel() and set_priority() come
// from anywhere; mutex_ guards what they share with the steps.
class RangeReader final : public Transfer, public std::enable_shared_from_this<RangeReader> {
 public:
  RangeReader(std::shared_ptr<FileSource> source, ReadRequest request, RangeReadHooks hooks)
      : source_(std::move(source)),
        hooks_(std::move(hooks)),
        request_(std::move(request)),
        priority_(request_.priority) {}

  ~RangeReader() override { finish(fail(Code::kCancelled, "the origin is closing")); }

  void begin() { attempt(); }

  void cancel() override {
    std::shared_ptr<FollowedRequest> follow;
    uint64_t waiter = 0;
    uint64_t timer = 0;
    {
      std::lock_guard lock(mutex_);
      if (cancelled_ || state_ == State::kDone) return;
      cancelled_ = true;
      if (state_ == State::kOnWire) {
        follow = follow_;
      } else {
        state_ = State::kLeaving;  // whatever it waited for finds it gone
        waiter = waiter_;
        timer = timer_;
      }
    }
    if (follow) {
      follow->cancel();
      return;
    }
    if (waiter != 0) source_->leave(waiter);
    if (timer != 0) source_->net().timers.cancel(timer);
    finish_later(failure(Code::kCancelled, "cancelled"));
  }

  void set_priority(int priority) override {
    std::shared_ptr<FollowedRequest> follow;
    bool waits;
    {
      std::lock_guard lock(mutex_);
      priority_ = priority;
      follow = follow_;
      waits = waiter_ != 0;
    }
    if (follow) follow->set_priority(priority);
    if (waits) source_->hurry(priority);
  }

 private:
  enum class State { kWaiting, kOnWire, kLeaving, kDone };
  enum class Verdict { kNone, kRetry, kRenew, kFatal };

  tl::unexpected<Error> failure(Code code, const std::string& why) const {
    return fail(code, source_->options().label + " " + shown_range(request_.range) + ": " + why);
  }

  // A step: find out where to ask.
  void attempt() {
    int priority;
    {
      std::lock_guard lock(mutex_);
      if (state_ != State::kWaiting) return;
      priority = priority_;
      waiter_ = 0;
    }
    auto self = shared_from_this();
    const uint64_t waiter = source_->locate(
        priority, [self](Result<Location> location) { self->located(std::move(location)); });
    if (waiter == 0) return;
    bool left;
    {
      std::lock_guard lock(mutex_);
      left = state_ == State::kLeaving || state_ == State::kDone;
      if (state_ == State::kWaiting) waiter_ = waiter;
    }
    if (left) source_->leave(waiter);
  }

  void located(Result<Location> location);
  Result<void> on_headers(const HttpResponse& response);
  Result<void> judge(const HttpResponse& response);
  Result<void> on_body(std::span<const std::byte> piece);
  void on_http_done(Result<HttpResponse> result);
  // The timers were stopped with our next try in them: nothing would ever come any more.
  void on_dropped() {
    {
      std::lock_guard lock(mutex_);
      if (state_ != State::kWaiting) return;
      state_ = State::kLeaving;
    }
    finish(failure(Code::kCancelled, "the origin is closing"));
  }
  // For steps that may still be inside read(), whose caller may hold locks that on_done takes.
  void finish_later(Result<void> result) {
    source_->net().timers.post(
        [self = shared_from_this(), result = std::move(result)] { self->finish(result); });
  }
  void finish(Result<void> result);

  const std::shared_ptr<FileSource> source_;
  RangeReadHooks hooks_;
  ReadRequest request_;

  // The current step's.
  Location location_;
  uint64_t delivered_ = 0;
  uint64_t delivered_before_ = 0;  // this try
  uint64_t skip_ = 0;              // bytes of a 200 that come before the wanted ones
  int tries_ = 0;
  int renewals_ = 0;
  bool answered_ = false;  // ever
  bool unreachable_ = false;
  bool preempted_ = false;  // by a more urgent request: goes on where it was
  bool partial_ = false;      // a 206
  bool sink_failed_ = false;  // why_ is the sink's own error
  Verdict verdict_ = Verdict::kNone;
  Error why_{Code::kOrigin, ""};
  std::optional<std::chrono::milliseconds> asked_wait_;

  std::mutex mutex_;  // guards all below
  State state_ = State::kWaiting;
  bool cancelled_ = false;
  int priority_;
  uint64_t waiter_ = 0;  // at the source; may be over already
  uint64_t timer_ = 0;   // of the last retry; may have fired
  std::shared_ptr<FollowedRequest> follow_;
};

void RangeReader::located(Result<Location> location) {
  if (!location) {
    finish_later(failure(location.error().code, location.error().what));
    return;
  }
  location_ = std::move(*location);
  const std::string origin = url_origin(location_.url);
  if (tries_ == 0 && source_->net().reach.out(origin)) {
    finish_later(
        failure(Code::kOffline, url_host(location_.url) + ": was out of reach a moment ago"));
    return;
  }
  verdict_ = Verdict::kNone;
  unreachable_ = false;
  skip_ = 0;
  delivered_before_ = delivered_;

  auto self = shared_from_this();
  FollowOptions options;
  options.request.url = location_.url;
  options.request.range =
      ByteRange{request_.range.offset + delivered_, request_.range.length - delivered_};
  options.request.on_headers = [self](const HttpResponse& r) { return self->on_headers(r); };
  options.request.on_body = [self](std::span<const std::byte> b) { return self->on_body(b); };
  options.request.on_unreachable = [self] { self->unreachable_ = true; };
  options.request.on_preempted = [self] { self->preempted_ = true; };
  options.request.hedge = hooks_.hedge;
  options.request.flow = request_.flow;
  options.request.max_connections = source_->net().max_connections;
  options.request.on_wire = [self] {
    if (self->hooks_.on_wire) self->hooks_.on_wire(true);
  };
  options.request.on_done = [self](Result<HttpResponse> r) { self->on_http_done(std::move(r)); };
  options.credentials = source_->net().credentials;
  options.on_redirect = [self](const FollowOptions::Hop& hop) -> Result<bool> {
    auto ok = self->source_->check_if_entry(hop.response, hop.from);
    if (!ok) return fail(ok.error(), url_host(hop.from));
    return true;
  };
  std::shared_ptr<FollowedRequest> follow;
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kWaiting) return;
    options.priority = priority_;
    follow = std::make_shared<FollowedRequest>(source_->net().http, std::move(options));
    follow_ = follow;
    state_ = State::kOnWire;
    waiter_ = 0;
  }
  follow->begin();
}

Result<void> RangeReader::on_headers(const HttpResponse& response) {
  verdict_ = Verdict::kFatal;  // unless judge() says otherwise
  auto judged = judge(response);
  if (judged) {
    verdict_ = Verdict::kNone;
    partial_ = response.status == 206;
  } else {
    const std::string host = url_host(follow_->url());
    why_ = Error{judged.error().code, host + ": " + judged.error().what};
  }
  return judged;
}

Result<void> RangeReader::judge(const HttpResponse& response) {
  const std::string& url = follow_->url();
  const int status = response.status;
  source_->net().reach.answered(url_origin(url));
  answered_ = true;
  if (retryable_status(status)) {
    verdict_ = Verdict::kRetry;
    asked_wait_ = server_wait(response, std::chrono::system_clock::now());
    return fail(Code::kOffline, "HTTP " + std::to_string(status));
  }
  const bool redirected = location_.renewable || url != location_.url;
  const bool expired = status == 401 || status == 403 || status == 404 || status == 410;
  // A hub that says which of its own errors it is means it.
  if (redirected && expired && !response.header("x-error-code")) {
    verdict_ = Verdict::kRenew;
    return fail(Code::kOrigin, "HTTP " + std::to_string(status));
  }
  if (source_->options().may_change && (status == 206 || status == 416)) {
    const auto now = size_in_content_range(response);
    if (now && *now != source_->options().size) {
      return fail(Code::kStale, "it had " + std::to_string(source_->options().size) + " bytes and has " +
                                    std::to_string(*now) + " now");
    }
  }
  if (status == 416) {
    return fail(Code::kOrigin, "HTTP 416 (" + response.header("content-range").value_or("no size") +
                                   "), but the listing says " +
                                   std::to_string(source_->options().size) + " bytes");
  }
  if (status >= 400) return tl::unexpected(source_->options().error_of(response));
  if (auto ok = source_->check_if_entry(response, url); !ok) return ok;

  const std::string etag = normal_etag(response.header("etag").value_or(""));
  if (source_->options().check_etag) {
    if (auto ok = source_->options().check_etag(etag); !ok) return ok;
  }
  if (auto ok = source_->check_location_etag(location_, etag); !ok) return ok;

  const ByteRange asked{request_.range.offset + delivered_, request_.range.length - delivered_};
  auto skip = check_range_answer(response, asked, source_->options().size,
                                 source_->options().html_expected);
  if (!skip) return tl::unexpected(skip.error());
  skip_ = *skip;
  return {};
}

Result<void> RangeReader::on_body(std::span<const std::byte> piece) {
  if (skip_ > 0) {
    const uint64_t skipped = std::min<uint64_t>(skip_, piece.size());
    skip_ -= skipped;
    piece = piece.subspan(skipped);
    if (piece.empty()) return {};
  }
  const uint64_t wanted = request_.range.length - delivered_;
  if (piece.size() > wanted) {
    if (partial_) {
      verdict_ = Verdict::kFatal;
      why_ = Error{Code::kOrigin,
                   url_host(follow_->url()) + ": a body longer than what was asked for"};
      return tl::unexpected(why_);
    }
    piece = piece.first(wanted);
  }
  if (!piece.empty()) {
    auto taken = request_.sink(request_.range.offset + delivered_, piece);
    if (!taken) {
      verdict_ = Verdict::kFatal;
      sink_failed_ = true;
      why_ = taken.error();
      return taken;
    }
    delivered_ += piece.size();
  }
  // A whole file was sent for a range: the rest of it is not wanted.
  if (!partial_ && delivered_ == request_.range.length) return fail(Code::kOrigin, "enough");
  return {};
}

void RangeReader::on_http_done(Result<HttpResponse> result) {
  const std::string url = follow_->url();
  if (hooks_.on_wire) hooks_.on_wire(false);
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    state_ = State::kWaiting;
    follow_ = nullptr;
    cancelled = cancelled_;
    // cancel() does nothing any more: this step ends it, here and now.
    if (cancelled) state_ = State::kLeaving;
  }
  if (delivered_ == request_.range.length && verdict_ != Verdict::kFatal) {
    finish({});
    return;
  }
  if (std::exchange(preempted_, false) && !cancelled) {
    attempt();
    return;
  }
  if (cancelled || (!result && result.error().code == Code::kCancelled)) {
    finish(failure(Code::kCancelled, "cancelled"));
    return;
  }
  if (verdict_ == Verdict::kFatal) {
    finish(sink_failed_ ? tl::unexpected(why_) : failure(why_.code, why_.what));
    return;
  }
  if (verdict_ == Verdict::kRenew) {
    source_->drop(location_);
    if (++renewals_ > kRenewalsMax) {
      finish(failure(why_.code, why_.what + ", also after 3 new locations"));
      return;
    }
    attempt();
    return;
  }

  std::optional<std::chrono::milliseconds> asked;
  Error why{Code::kOrigin, ""};
  if (verdict_ == Verdict::kRetry) {
    why = why_;
    asked = asked_wait_;
  } else if (result) {
    why.what = url_host(url) + ": the body ended after " +
               std::to_string(delivered_ - delivered_before_) + " bytes";
  } else if (result.error().code == Code::kOffline) {
    why = result.error();
  } else {
    finish(failure(result.error().code, result.error().what));
    return;
  }
  const RetryPolicy& policy = source_->net().policy;
  if (unreachable_) {
    source_->net().reach.failed(url_origin(url));
    source_->drop(location_);  // another resolution may name another host
  }
  if (delivered_ - delivered_before_ >= kProgressBytes) tries_ = 0;
  ++tries_;
  const int limit = unreachable_ && !answered_
                        ? std::min(policy.max_tries, policy.unreachable_tries)
                        : policy.max_tries;
  if (tries_ >= limit) {
    finish(failure(why.code, why.what + " (" + std::to_string(tries_) + " tries)"));
    return;
  }
  ++source_->net().retries;
  source_->net().http.note_retry(url_origin(url));
  const auto wait = retry_wait(policy, tries_, random_jitter(), asked);
  auto self = shared_from_this();
  const uint64_t timer = source_->net().timers.post_after(
      wait, run_or_drop([self] { self->attempt(); }, [self] { self->on_dropped(); }));
  std::lock_guard lock(mutex_);
  timer_ = timer;
}

void RangeReader::finish(Result<void> result) {
  std::function<void(Result<void>)> done;
  std::function<Result<void>(uint64_t, std::span<const std::byte>)> sink;
  {
    std::lock_guard lock(mutex_);
    if (state_ == State::kDone) return;
    state_ = State::kDone;
    done = std::move(request_.on_done);
    sink = std::move(request_.sink);  // freed: it may hold what holds this transfer
    request_.sink = nullptr;
  }
  if (done) done(std::move(result));
  hooks_.on_wire = nullptr;  // it may hold what holds this transfer, too
}

// A transfer with nothing left to cancel.
class OverTransfer final : public Transfer {
 public:
  void cancel() override {}
  void set_priority(int) override {}
};

}  // namespace

std::shared_ptr<Transfer> read_range(std::shared_ptr<FileSource> source, ReadRequest request,
                                     RangeReadHooks hooks) {
  auto reader =
      std::make_shared<RangeReader>(std::move(source), std::move(request), std::move(hooks));
  reader->begin();
  return reader;
}

std::shared_ptr<Transfer> failed_read(ReadRequest request, Error error, Executor& timers) {
  timers.post([done = std::move(request.on_done), error = std::move(error)] {
    if (done) done(tl::unexpected(error));
  });
  return std::make_shared<OverTransfer>();
}

}  // namespace nexus
