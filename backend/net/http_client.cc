#include "backend/net/http_client.h"

#include <curl/curl.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "backend/net/http_job.h"
#include "backend/net/url.h"

namespace nexus {

namespace {

constexpr size_t kIdleHandlesMax = 64;
constexpr uint64_t kNearlyDoneBytes = 8 << 20;
constexpr long kIdleConnectionsMax = 64;
constexpr size_t kFlowsMax = 256;  // remembered of one host; beyond it those that are over are forgotten
constexpr int kLookedAtMax = 32;   // waiting requests, for one of an idle flow: the turns bring those to the front

void init_curl_once() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  static_cast<void>(code);
}

}  // namespace

struct HttpClient::Impl {
  using Turn = std::tuple<int, uint64_t, uint64_t>;  // priority, tag, id: ids grow with arrival
  // Flows take turns by start-time fair queueing: a request's tag is where its flow's last one ends, in bytes, or where
  // the place is now, whichever is later. So who asks for little is served among the first requests of who asks for much.
  struct Flow {
    uint64_t end = 0;  // of its last request
    int active = 0;
  };
  struct Place {
    int limit = 0;
    int hedge_limit = 0;  // beyond limit
    int guest_limit = 0;  // beyond both
    uint64_t now = 0;     // the largest tag that went on the wire
    std::map<uint64_t, Flow> flows;
    std::set<uint64_t> active;
    std::set<uint64_t> guests;  // of the active
    std::set<Turn> waiting;
    std::set<Turn> hedges;  // of those that wait
    std::set<Turn>& queue_of(const HttpJob& job) { return job.request.hedge ? hedges : waiting; }
    int at_home() const { return static_cast<int>(active.size() - guests.size()); }
    bool idle(uint64_t flow) const {
      const auto known = flows.find(flow);
      return flow != 0 && (known == flows.end() || known->second.active == 0);
    }
  };
  enum class Verb { kStart, kCancel, kPriority };
  struct Command {
    Verb verb;
    uint64_t id;
    int priority;
    std::unique_ptr<HttpJob> job;
  };

  explicit Impl(HttpOptions opts) : options(std::move(opts)) {
    init_curl_once();
    multi = curl_multi_init();
    curl_multi_setopt(multi, CURLMOPT_PIPELINING, static_cast<long>(CURLPIPE_MULTIPLEX));
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, kIdleConnectionsMax);
    thread = std::thread([this] { run(); });
  }

  ~Impl() {
    stop();
    for (CURL* easy : idle_handles) curl_easy_cleanup(easy);
    curl_multi_cleanup(multi);
  }

  void stop() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    curl_multi_wakeup(multi);
    std::lock_guard lock(join_mutex);
    if (thread.joinable()) thread.join();
  }

  void send(Command command) {
    {
      std::lock_guard lock(mutex);
      if (!closed) {
        inbox.push_back(std::move(command));
        command.job = nullptr;
      }
    }
    if (command.job) {  // closed: nobody else will answer
      if (command.job->request.on_done) {
        command.job->request.on_done(fail(Code::kCancelled, "the client is closed"));
      }
      return;
    }
    curl_multi_wakeup(multi);
  }

  // From here on: the client's thread only.

  void run() {
    pthread_setname_np(pthread_self(), "nexus-http");
    for (;;) {
      if (take_commands()) break;
      int running = 0;
      curl_multi_perform(multi, &running);
      collect();
      // Callbacks may have sent commands; those woke the poll already.
      curl_multi_poll(multi, nullptr, 0, active_count > 0 ? 1000 : 60000, nullptr);
    }
  }

  // True when the thread is to end: everything has been answered and nothing can come in any more.
  bool take_commands() {
    for (;;) {
      std::vector<Command> commands;
      bool ending;
      {
        std::lock_guard lock(mutex);
        commands.swap(inbox);
        ending = stopping;
        if (ending && commands.empty() && jobs.empty()) {
          closed = true;
          return true;
        }
      }
      for (auto& command : commands) obey(command);
      if (!ending) return false;
      while (!jobs.empty()) {
        finish(jobs.begin()->first, fail(Code::kCancelled, "the client is closing"));
      }
    }
  }

  void obey(Command& command) {
    if (command.verb == Verb::kStart) {
      enqueue(std::move(command.job));
      return;
    }
    auto it = jobs.find(command.id);
    if (it == jobs.end()) return;
    HttpJob& job = *it->second;
    if (command.verb == Verb::kCancel) {
      finish(job.id, fail(Code::kCancelled, job.host + ": cancelled"));
    } else {
      Place& place = places[job.place];
      const bool waits = job.easy == nullptr;
      if (waits) remove_waiting(place, job);
      job.priority = command.priority;
      if (waits) add_waiting(place, job);
      const std::string name = job.place;
      fill(name);
    }
  }

  void enqueue(std::unique_ptr<HttpJob> job) {
    const uint64_t id = job->id;
    auto url = parse_url(job->request.url);
    HttpJob& ref = *job;
    jobs.emplace(id, std::move(job));
    if (!url) {
      finish(id, tl::unexpected(url.error()));
      return;
    }
    ref.host = url->shown_host();
    const bool bulk = ref.request.range.has_value();
    ref.place = (bulk ? "bulk " : "meta ") + url->origin();
    Place& place = places[ref.place];
    const int own = ref.request.max_connections;
    const int bulk_limit = own > 0 ? own : options.max_connections_per_host;
    place.limit = std::max({1, place.limit, bulk ? bulk_limit : options.max_metadata_per_host});
    place.hedge_limit = bulk ? options.max_hedges_per_host : 0;
    place.guest_limit = bulk ? options.max_guests_per_host : 0;
    set_tag(place, ref);
    add_waiting(place, ref);
    fill(ref.place);
  }

  void set_tag(Place& place, HttpJob& job) {
    job.tag = place.now;
    if (job.request.flow == 0) return;
    if (place.flows.size() > kFlowsMax) {
      std::erase_if(place.flows, [&](const auto& flow) {
        return flow.second.active == 0 && flow.second.end <= place.now;
      });
    }
    Flow& flow = place.flows[job.request.flow];
    job.tag = std::max(place.now, flow.end);
    flow.end = job.tag + (job.request.range ? job.request.range->length : 0);
  }

  static Turn turn_of(const HttpJob& job) { return {job.priority, job.tag, job.id}; }
  void add_waiting(Place& place, const HttpJob& job) {
    if (place.queue_of(job).insert(turn_of(job)).second) ++queued(job.priority);
  }
  void remove_waiting(Place& place, const HttpJob& job) {
    if (place.queue_of(job).erase(turn_of(job)) > 0) --queued(job.priority);
  }
  std::atomic<uint64_t>& queued(int priority) {
    if (priority >= kBackgroundPriority) return queued_prefetch;
    return priority > 0 ? queued_read_ahead : queued_demand;
  }

  // Puts on the wire what the limit allows.
  void fill(const std::string& name) {
    auto it = places.find(name);
    if (it == places.end()) return;
    Place& place = it->second;
    const auto launch_from = [&](std::set<Turn>& queue, int limit) {
      while (!queue.empty() && place.at_home() < limit) {
        if (std::get<0>(*queue.begin()) >= kBackgroundPriority && foreground_active(place)) return;
        launch_waiting(place, *jobs.at(std::get<2>(*queue.begin())));
      }
    };
    launch_from(place.hedges, place.limit + place.hedge_limit);
    launch_from(place.waiting, place.limit);
    if (place.waiting.empty() && place.hedges.empty() && place.active.empty()) {
      places.erase(it);
    } else if (!place.waiting.empty() &&
               std::get<0>(*place.waiting.begin()) < kBackgroundPriority) {
      if (!preempt(place)) launch_guests(place);
    }
  }

  void launch_waiting(Place& place, HttpJob& job) {
    remove_waiting(place, job);
    place.active.insert(job.id);
    place.now = std::max(place.now, job.tag);
    if (job.request.flow != 0) ++place.flows[job.request.flow].active;
    launch(job);
  }

  // Every place is held by readers, and another one has nothing on the wire.
  void launch_guests(Place& place) {
    int looked_at = 0;
    for (auto turn = place.waiting.begin(); turn != place.waiting.end() && looked_at < kLookedAtMax; ++looked_at) {
      if (static_cast<int>(place.guests.size()) >= place.guest_limit || std::get<0>(*turn) > 0) return;
      HttpJob& job = *jobs.at(std::get<2>(*turn++));
      if (!place.idle(job.request.flow)) continue;
      place.guests.insert(job.id);
      launch_waiting(place, job);
    }
  }

  bool foreground_active(const Place& place) const {
    return std::any_of(place.active.begin(), place.active.end(), [this](uint64_t id) {
      const HttpJob& job = *jobs.at(id);
      return job.priority < kBackgroundPriority && !nearly_done(job);
    });
  }

  // Its last bytes are on their way: what takes a place beside it now costs it next to nothing, and
  // the line is not idle for the round trip between a layer and the next one.
  static bool nearly_done(const HttpJob& job) {
    if (!job.request.range) return false;
    const uint64_t left =
        job.request.range->length - std::min(job.received, job.request.range->length);
    return left <= std::min(job.request.range->length / 4, kNearlyDoneBytes);
  }

  // A place is full and a reader waits: the background request that is wanted last gives way. Its
  // connection ends with it, which costs the other one a connect.
  // False where nothing can give way.
  bool preempt(const Place& place) {
    const HttpJob* last = nullptr;
    for (const uint64_t id : place.active) {
      const HttpJob& job = *jobs.at(id);
      if (job.priority < kBackgroundPriority || !job.request.on_preempted || job.error) continue;
      if (!last || turn_of(job) > turn_of(*last)) last = &job;
    }
    if (!last) return false;
    const uint64_t id = last->id;
    last->request.on_preempted();
    finish(id, fail(Code::kCancelled, last->host + ": gave way"));  // and fills the place again
    return true;
  }

  void launch(HttpJob& job) {
    if (idle_handles.empty()) {
      job.easy = curl_easy_init();
    } else {
      job.easy = idle_handles.back();
      idle_handles.pop_back();
    }
    ++active_count;
    job.meter = meters.of(job.place.substr(job.place.find(' ') + 1));
    job.meter->begin(std::chrono::steady_clock::now());
    if (job.request.hedge) job.meter->hedge();
    set_up(job, options);
    curl_multi_add_handle(multi, job.easy);
    if (job.request.on_wire) job.request.on_wire();
  }

  void collect() {
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      HttpJob* job = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &job);
      conclude(*job, message->data.result);
    }
  }

  void conclude(HttpJob& job, CURLcode code) {
    if (job.error) {
      finish(job.id, tl::unexpected(*job.error));
    } else if (code == CURLE_OK) {
      finish(job.id, std::move(job.response));
    } else {
      const Error error{Code::kOffline, job.host + ": " + describe_failure(job.easy, code)};
      const bool unreachable =
          no_connection(code) || (code == CURLE_OPERATION_TIMEDOUT && !job.answered);
      const std::string place = job.place;
      if (unreachable && job.request.on_unreachable) job.request.on_unreachable();
      finish(job.id, tl::unexpected(error), !unreachable);
      if (unreachable) {
        abandon(place, error);
        fill(place);
      }
    }
  }

  // A dead host costs one timeout, not one a batch: who waits for it fails with it, unless some
  // transfer shows that the host lives.
  void abandon(const std::string& name, const Error& error) {
    auto it = places.find(name);
    if (it == places.end()) return;
    for (const uint64_t id : it->second.active) {
      if (jobs.at(id)->answered) return;
    }
    std::vector<uint64_t> ids;
    for (const auto& turn : it->second.hedges) ids.push_back(std::get<2>(turn));
    for (const auto& turn : it->second.waiting) ids.push_back(std::get<2>(turn));
    for (const uint64_t id : ids) {
      auto& request = jobs.at(id)->request;
      if (request.on_unreachable) request.on_unreachable();
      finish(id, tl::unexpected(error), false);
    }
  }

  void finish(uint64_t id, Result<HttpResponse> result, bool refill = true) {
    auto node = jobs.extract(id);
    HttpJob& job = *node.mapped();
    if (job.easy != nullptr) {
      job.meter->end(!result && result.error().code != Code::kCancelled, connect_ms(job.easy),
                     first_byte_ms(job.easy));
      curl_multi_remove_handle(multi, job.easy);
      curl_slist_free_all(job.headers);
      if (idle_handles.size() < kIdleHandlesMax) {
        curl_easy_reset(job.easy);
        idle_handles.push_back(job.easy);
      } else {
        curl_easy_cleanup(job.easy);
      }
      --active_count;
    }
    auto place = places.find(job.place);
    if (place != places.end()) {
      if (place->second.active.erase(id) > 0 && job.request.flow != 0) --place->second.flows[job.request.flow].active;
      place->second.guests.erase(id);
      remove_waiting(place->second, job);
    }
    // The next one goes on the wire before the callback runs: the connection does not idle
    // meanwhile.
    if (refill && !ending_now()) fill(job.place);
    if (job.request.on_done) job.request.on_done(std::move(result));
  }

  bool ending_now() {
    std::lock_guard lock(mutex);
    return stopping;
  }

  const HttpOptions options;
  CURLM* multi = nullptr;
  std::atomic<uint64_t> next_id{1};
  std::atomic<int> active_count{0};
  std::atomic<uint64_t> queued_demand{0}, queued_read_ahead{0}, queued_prefetch{0};
  HostMeters meters;

  std::mutex mutex;  // guards inbox, stopping, closed
  std::vector<Command> inbox;
  bool stopping = false;
  bool closed = false;

  // The client's thread only.
  std::unordered_map<uint64_t, std::unique_ptr<HttpJob>> jobs;
  std::map<std::string, Place> places;
  std::vector<CURL*> idle_handles;

  std::mutex join_mutex;  // stop() may be called from two threads
  std::thread thread;     // last: it uses everything above
};

HttpClient::HttpClient(HttpOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

HttpClient::~HttpClient() = default;

uint64_t HttpClient::start(HttpRequest request, int priority) {
  auto job = std::make_unique<HttpJob>();
  const uint64_t id = impl_->next_id++;
  job->id = id;
  job->priority = priority;
  job->request = std::move(request);
  impl_->send({Impl::Verb::kStart, id, priority, std::move(job)});
  return id;
}

void HttpClient::cancel(uint64_t id) {
  impl_->send({Impl::Verb::kCancel, id, 0, nullptr});
}

void HttpClient::set_priority(uint64_t id, int priority) {
  impl_->send({Impl::Verb::kPriority, id, priority, nullptr});
}

void HttpClient::stop() {
  impl_->stop();
}

std::vector<HostTraffic> HttpClient::hosts() const {
  return impl_->meters.list();
}

HttpQueue HttpClient::queue() const {
  return {impl_->queued_demand, impl_->queued_read_ahead, impl_->queued_prefetch};
}

void HttpClient::note_retry(const std::string& origin) {
  impl_->meters.of(origin)->retry();
}

int HttpClient::active() const {
  return impl_->active_count;
}

}  // namespace nexus
