#include "prefetch/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace nexus::prefetch {

namespace {
constexpr size_t kModels = 64;   // whose history is kept; the least recently used is forgotten
constexpr double kWeight = 0.3;  // of a new measurement in a moving average
constexpr int kPatience = 4;     // events, and two more for each walk beside the first
constexpr uint64_t kLittle = 8;  // the part of a layer that may be fetched in vain: one in eight
// What was fetched and not read for this long no longer counts against the budget.
constexpr auto kForgetUnread = std::chrono::minutes(10);

void average(double& mean, double value) {
  mean = mean == 0 ? value : mean + kWeight * (value - mean);
}

double ms_between(Scheduler::Time from, Scheduler::Time to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}
}  // namespace

Scheduler::Scheduler(SchedulerOptions options, Executor& executor, OrderStore& orders,
                     std::function<Time()> now)
    : options_(options), executor_(executor), orders_(orders), now_(std::move(now)) {}

Scheduler::~Scheduler() {
  *alive_ = false;
}

Scheduler::ModelState& Scheduler::state_of(const std::string& model,
                                           const std::shared_ptr<LayerSource>& source) {
  auto found = models_.find(model);
  if (found == models_.end()) {
    if (models_.size() == kModels) {
      const auto oldest = std::min_element(models_.begin(), models_.end(), [](auto& a, auto& b) {
        return a.second.used < b.second.used;
      });
      oldest->second.wanted.clear();
      cancel_unwanted(oldest->second);
      models_.erase(oldest);
    }
    found = models_.emplace(model, ModelState{}).first;
    found->second.plan = orders_.load(model);
  }
  if (source) found->second.source = source;
  found->second.used = ++clock_;
  return found->second;
}

void Scheduler::on_layer(const std::string& model, const std::shared_ptr<LayerSource>& source,
                         LayerView view, int layer, bool here) {
  if (stopped_) return;
  const int count = source->layer_count();
  if (layer < 0 || layer >= count) return;
  ModelState& state = state_of(model, source);

  const auto job = state.jobs.find({view, layer});
  const bool ahead = job != state.jobs.end();
  if (ahead) {
    job->second.read = true;
    if (!job->second.running) state.jobs.erase(job);
  }
  const size_t known = state.history.order().size();
  const Walk* walk = state.history.on_access(layer);
  if (walk || state.history.order().size() > known) {
    std::lock_guard lock(stats_mutex_);
    ++stats_.total_requests;
    if (here || ahead) ++stats_.cache_hits;
  }
  record_order(model, state);
  if (!walk) return;
  const std::span<const Walk> walks = state.history.walks();
  const auto going = std::count_if(walks.begin(), walks.end(),
                                   [&](const Walk& w) { return !state.history.abandoned(w); });
  state.accuracy.accessed(layer, kPatience + 2 * (static_cast<int>(going) - 1));
  note_pace(state, walk->id, here);

  // As far as it may ever look: the depth goes up and down with the link, and what was asked for at
  // a greater one stays wanted.
  const std::vector<int> in_files = view == LayerView::kShards ? source->file_order() : std::vector<int>{};
  const Prediction next = predict(walk->layers, state.history.recent(), state.plan, in_files, count,
                                  depth_max(), state.accuracy);
  std::vector<Key> wanted;
  for (const int ahead_of_it : next.layers) wanted.emplace_back(view, ahead_of_it);
  std::erase_if(state.wanted, [&](const auto& entry) {  // of walks that ended
    return std::none_of(walks.begin(), walks.end(), [&](const Walk& w) {
      return w.id == entry.first && !state.history.abandoned(w);
    });
  });
  state.wanted[walk->id] = wanted;
  cancel_unwanted(state);
  wanted.resize(std::min(wanted.size(), static_cast<size_t>(depth(state))));
  fetch_wanted(model, state, wanted);
  publish_depth();
}

void Scheduler::on_file(const std::string& model, const std::shared_ptr<LayerSource>& source, LayerView view,
                        const std::vector<int>& layers) {
  const auto found = models_.find(model);
  if (found == models_.end() || layers.empty()) return;
  const auto& wanted = found->second.wanted;
  const bool expected = std::any_of(wanted.begin(), wanted.end(), [&](const auto& entry) {
    return !entry.second.empty() && entry.second.front() == Key{view, layers.front()};
  });
  if (!expected) return;
  for (const int layer : layers) on_layer(model, source, view, layer, true);
}

// From one layer to the next of a walk. Where the reader had to wait, the time is the link's.
void Scheduler::note_pace(ModelState& state, uint64_t walk, bool here) {
  const Time now = now_();
  if (state.last_event.size() > 64) state.last_event.clear();
  const auto [entry, first] = state.last_event.try_emplace(walk, now, here);
  if (first) return;
  if (entry->second.second) average(state.pace_ms, ms_between(entry->second.first, now));
  entry->second = {now, here};
}

int Scheduler::depth(const ModelState& state) const {
  if (state.fetch_ms == 0 || state.pace_ms == 0) return options_.lookahead;
  const double behind = std::min(state.fetch_ms / state.pace_ms, 100.0);
  return std::clamp(options_.lookahead + static_cast<int>(std::lround(behind)) - 1,
                    options_.lookahead, depth_max());
}

// What no walk heads for any more ends before it costs much. What came of a layer is lost with its
// fetch, and readers come to most layers of a model some day: with more than kLittle of it here,
// the rest is the better buy.
void Scheduler::cancel_unwanted(ModelState& state) {
  for (auto& [key, job] : state.jobs) {
    if (!job.running || job.read) continue;
    const bool wanted =
        std::any_of(state.wanted.begin(), state.wanted.end(), [&](const auto& entry) {
          return std::find(entry.second.begin(), entry.second.end(), key) != entry.second.end();
        });
    if (wanted) continue;
    const uint64_t asked = job.cost.total();
    if (asked - std::min(asked, cost_of(*state.source, key).total()) > asked / kLittle) continue;
    state.source->cancel(job.ticket);  // done() follows
  }
}

void Scheduler::fetch_wanted(const std::string& model, ModelState& state,
                             const std::vector<Key>& wanted) {
  if (options_.memory_short && options_.memory_short()) return;
  Cost unread = outstanding();
  for (const Key& key : wanted) {
    const auto known = state.jobs.find(key);
    if (known != state.jobs.end() && known->second.running) continue;
    if (state.source->missing(key.first, key.second) == 0) continue;
    if (known != state.jobs.end()) {  // evicted before it was read
      state.jobs.erase(known);
      unread = outstanding();
    }
    const Cost cost = cost_of(*state.source, key);
    Cost together = unread;
    together.bytes += cost.bytes;
    together.files.insert(cost.files.begin(), cost.files.end());
    // The farther ones wait: their turn comes when the reader is nearer.
    if (together.total() > options_.budget_bytes) return;
    unread = std::move(together);
    Job job;
    job.id = next_id_++;
    job.cost = cost;
    job.since = now_();
    job.running = true;
    const uint64_t id = job.id;
    auto& slot = state.jobs[key] = job;
    slot.ticket = state.source->fetch(
        key.first, key.second, next_turn_++,
        [this, alive = alive_, model, key, id, executor = &executor_](Result<void> result) {
          executor->post([this, alive, model, key, id, ok = result.has_value()] {
            if (*alive) done(model, key, id, ok);
          });
        });
  }
}

void Scheduler::done(const std::string& model, Key key, uint64_t id, bool ok) {
  const auto found = models_.find(model);
  if (found == models_.end()) return;
  ModelState& state = found->second;
  const auto entry = state.jobs.find(key);
  if (entry == state.jobs.end() || entry->second.id != id) return;
  Job& job = entry->second;
  job.running = false;
  const Time now = now_();
  if (ok) {
    // Layers come one after the other: what this one waited for the one before is not its own.
    average(state.fetch_ms, std::max(0.001, ms_between(std::max(job.since, state.last_done), now)));
    state.last_done = now;
    std::lock_guard lock(stats_mutex_);
    ++stats_.fetches;
    stats_.fetch_ms += static_cast<uint64_t>(ms_between(job.since, now));
  }
  if (!ok || job.read) state.jobs.erase(entry);
  publish_depth();
}

void Scheduler::record_order(const std::string& model, ModelState& state) {
  const auto& order = state.history.order();
  if (static_cast<int>(order.size()) < state.source->layer_count()) return;
  if (!std::exchange(state.recorded, true) && order != state.plan) {
    orders_.save(model, order);
    state.plan = order;
  }
}

std::vector<int> Scheduler::plan(const std::string& model) {
  const auto found = models_.find(model);
  return found == models_.end() ? orders_.load(model) : found->second.plan;
}

void Scheduler::record_plan(const std::string& model) {
  ModelState& state = state_of(model, nullptr);
  state.history.clear_order();
  state.recorded = false;
}

void Scheduler::drop_plan(const std::string& model) {
  orders_.save(model, {});
  const auto found = models_.find(model);
  if (found == models_.end()) return;
  found->second.plan.clear();
  found->second.history.clear_order();
  found->second.recorded = false;
}

uint64_t Scheduler::Cost::total() const {
  uint64_t all = bytes;
  for (const auto& [file, missing] : files) all += missing;
  return all;
}

Scheduler::Cost Scheduler::cost_of(LayerSource& source, const Key& key) {
  Cost cost;
  cost.files = source.missing_files(key.first, key.second);
  const bool within = key.first == LayerView::kShards && !cost.files.empty();
  cost.bytes = within ? 0 : source.missing(key.first, key.second);
  return cost;
}

Scheduler::Cost Scheduler::outstanding() {
  Cost all;
  const Time now = now_();
  for (auto& [model, state] : models_) {
    std::erase_if(state.jobs, [&](const auto& entry) {
      return !entry.second.running && now - entry.second.since > kForgetUnread;
    });
    for (const auto& [key, job] : state.jobs) {
      if (job.read) continue;
      all.bytes += job.cost.bytes;
      all.files.insert(job.cost.files.begin(), job.cost.files.end());
    }
  }
  return all;
}

void Scheduler::publish_depth() {
  uint64_t running = 0;
  for (const auto& [model, state] : models_) {
    for (const auto& [key, job] : state.jobs) running += job.running ? 1 : 0;
  }
  std::lock_guard lock(stats_mutex_);
  stats_.queue_depth = running;
}

void Scheduler::stop() {
  stopped_ = true;
  for (auto& [model, state] : models_) {
    state.wanted.clear();
    for (auto& [key, job] : state.jobs) {
      if (job.running) state.source->cancel(job.ticket);
    }
  }
}

PrefetchStats Scheduler::stats() const {
  std::lock_guard lock(stats_mutex_);
  return stats_;
}

}  // namespace nexus::prefetch
