#include "backend/net/url.h"
#include "backend/origin/answer_check.h"
#include "backend/origin/range_reader.h"

namespace nexus {

namespace {
// A resolution may be told to wait a minute (rate limits), once or twice.
constexpr std::chrono::seconds kPatience{150};
}  // namespace

FileSource::FileSource(std::shared_ptr<NetContext> net, FileSourceOptions options)
    : net_(std::move(net)), options_(std::move(options)), entry_origin_(url_origin(options_.url)) {}

Result<void> FileSource::check_if_entry(const HttpResponse& response,
                                        const std::string& from) const {
  if (!options_.check_entry || url_origin(from) != entry_origin_) return {};
  return options_.check_entry(response);
}

uint64_t FileSource::locate(int priority, Located located) {
  if (!options_.resolve) {
    located(Location{options_.url, false});
    return 0;
  }
  uint64_t waiter = 0;
  std::shared_ptr<MetadataFetch> begin;
  std::shared_ptr<MetadataFetch> hurried;
  {
    std::unique_lock lock(mutex_);
    if (!location_.url.empty()) {
      const Location known = location_;
      lock.unlock();
      located(known);
      return 0;
    }
    if (!flight_ && net_->reach.out(entry_origin_)) {
      lock.unlock();
      located(fail(Code::kOffline, url_host(options_.url) + ": was out of reach a moment ago"));
      return 0;
    }
    waiter = next_waiter_++;
    waiters_.emplace(waiter, std::move(located));
    if (flight_) {
      if (priority < flight_priority_) {
        flight_priority_ = priority;
        hurried = flight_;
      }
    } else {
      const uint64_t id = ++flight_id_;
      flight_priority_ = priority;
      MetadataRequest request;
      request.method = "HEAD";
      request.url = options_.url;
      request.tries = net_->policy.max_tries;
      request.patience = kPatience;
      request.priority = priority;
      auto self = shared_from_this();
      // Relative redirects (a renamed repo) are followed; the first absolute one is the CDN's.
      auto target = std::make_shared<std::string>();
      request.on_redirect = [self, target](const FollowOptions::Hop& hop) -> Result<bool> {
        if (auto ok = self->check_if_entry(hop.response, hop.from); !ok) {
          return fail(ok.error(), url_host(hop.from));
        }
        if (hop.relative) return true;
        *target = hop.target;
        return false;
      };
      request.done = [self, id, target](Result<MetadataAnswer> answer) {
        if (!answer) return self->resolved(id, tl::unexpected(answer.error()));
        if (!target->empty()) return self->resolved(id, Location{*target, true});
        const HttpResponse& response = answer->response;
        const std::string host = url_host(answer->url);
        if (response.status >= 300) {
          const Error error = response.status >= 400
                                  ? self->options_.error_of(response)
                                  : Error{Code::kOrigin, "HTTP " + std::to_string(response.status)};
          return self->resolved(id, fail(error, host));
        }
        if (auto ok = self->check_if_entry(response, answer->url); !ok) {
          return self->resolved(id, fail(ok.error(), host));
        }
        const auto length = content_length(response);
        if (length && *length != self->options_.size && !response.header("x-linked-size")) {
          return self->resolved(
              id, fail(Code::kOrigin, host + ": the file has " + std::to_string(*length) +
                                          " bytes there, but the listing says " +
                                          std::to_string(self->options_.size)));
        }
        self->resolved(id, Location{answer->url, answer->url != self->options_.url});
      };
      begin = flight_ = std::make_shared<MetadataFetch>(net_, std::move(request));
    }
  }
  if (hurried) hurried->set_priority(priority);
  if (begin) begin->begin();
  return waiter;
}

void FileSource::resolved(uint64_t flight_id, Result<Location> result) {
  std::map<uint64_t, Located> waiters;
  std::shared_ptr<MetadataFetch> over;
  {
    std::lock_guard lock(mutex_);
    if (flight_id != flight_id_ || !flight_) return;  // everybody had left it
    over.swap(flight_);
    if (result) {
      location_ = *result;
      location_etag_.clear();
    }
    waiters.swap(waiters_);
  }
  for (auto& [id, located] : waiters) located(result);
}

void FileSource::leave(uint64_t waiter) {
  std::shared_ptr<MetadataFetch> over;
  {
    std::lock_guard lock(mutex_);
    if (waiters_.erase(waiter) == 0 || !waiters_.empty()) return;
    over.swap(flight_);
  }
  if (over) over->cancel();
}

void FileSource::hurry(int priority) {
  std::shared_ptr<MetadataFetch> flight;
  {
    std::lock_guard lock(mutex_);
    if (!flight_ || priority >= flight_priority_) return;
    flight_priority_ = priority;
    flight = flight_;
  }
  flight->set_priority(priority);
}

void FileSource::drop(const Location& location) {
  std::lock_guard lock(mutex_);
  if (location_.url == location.url) location_ = Location{};
}

Result<void> FileSource::check_location_etag(const Location& location, const std::string& etag) {
  if (etag.empty()) return {};
  std::lock_guard lock(mutex_);
  if (location_.url != location.url) return {};
  if (location_etag_.empty()) location_etag_ = etag;
  if (location_etag_ == etag) return {};
  return fail(Code::kOrigin, "the ETag changed from " + location_etag_ + " to " + etag);
}

}  // namespace nexus
