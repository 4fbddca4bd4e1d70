// Read-ahead by layers: from what readers did to what is fetched next. Decides only; the bytes move
// through a LayerSource.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/base/error.h"
#include "backend/base/executor.h"
#include "backend/model/layer_access.h"
#include "prefetch/history.h"
#include "prefetch/predictors.h"

namespace nexus::prefetch {

// One model's layers as the scheduler sees them. Called on the scheduler's executor.
class LayerSource {
 public:
  virtual ~LayerSource() = default;
  virtual int layer_count() = 0;  // 0: not known
  // The layers as the origin's files hold them one after the other; {} where it is not known.
  virtual std::vector<int> file_order() = 0;
  // Bytes that are not here; 0 also where there is nothing to fetch.
  virtual uint64_t missing(LayerView view, int layer) = 0;
  // Bytes missing of the files that come whole with a layer, by the files' keys (strict integrity: a digest covers a
  // whole file). Layers share files; one that comes for several of them comes once.
  virtual std::map<std::string, uint64_t> missing_files(LayerView, int /*layer*/) { return {}; }
  // Brings a layer for nobody yet; of two, the one with the lower `turn` goes first. done follows
  // once, from any thread, also after cancel().
  virtual uint64_t fetch(LayerView view, int layer, int turn,
                         std::function<void(Result<void>)> done) = 0;
  virtual void cancel(uint64_t ticket) = 0;
};

// Where the orders in which models were walked are kept.
class OrderStore {
 public:
  virtual ~OrderStore() = default;
  virtual std::vector<int> load(const std::string& model) = 0;  // {}: none
  virtual void save(const std::string& model, const std::vector<int>& order) = 0;
};

struct SchedulerOptions {
  int lookahead = 2;  // layers ahead once a walk is certain
  int depth_max = 5;  // on links slower than the reader; never below lookahead
  // Bytes fetched ahead and not read yet, all models together.
  uint64_t budget_bytes = 12'500'000'000;
  bool strict = false;  // layers come with the whole files that they are made from
  // True while memory is short: then nothing new is fetched ahead. May be empty.
  std::function<bool()> memory_short = {};
};

struct PrefetchStats {
  uint64_t total_requests = 0;         // layers that readers came to
  uint64_t cache_hits = 0;             // of them, here or on their way by read-ahead
  uint64_t fetches = 0, fetch_ms = 0;  // finished read-ahead, from asked to done
  uint64_t queue_depth = 0;            // layers on their way or waiting for their turn
};

// Thread safety: stats() from any thread, everything else on the executor.
class Scheduler {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // `executor` and `orders` outlive the scheduler's last callback; `now` is the clock.
  Scheduler(SchedulerOptions options, Executor& executor, OrderStore& orders,
            std::function<Time()> now);
  ~Scheduler();

  // A reader of `model` came to a layer; `here`: all of its bytes were here when it did.
  void on_layer(const std::string& model, const std::shared_ptr<LayerSource>& source,
                LayerView view, int layer, bool here);
  // A reader opened a file that holds these layers, all here, and what it reads of them is not seen. Where a walk heads for
  // the first of them it goes on through them all; else it says nothing: many open a file for its header.
  void on_file(const std::string& model, const std::shared_ptr<LayerSource>& source, LayerView view,
               const std::vector<int>& layers);
  // Ends everything that no reader waits for; later events do nothing.
  void stop();
  PrefetchStats stats() const;

  // The order that is replayed for a model, {} when none is recorded.
  std::vector<int> plan(const std::string& model);
  // Forgets what was walked so far: the order is recorded from here on, over the old one.
  void record_plan(const std::string& model);
  void drop_plan(const std::string& model);

 private:
  using Key = std::pair<LayerView, int>;
  // What is missing of a layer: its own bytes, as far as they are not in one of the files that come whole, and of those.
  struct Cost {
    uint64_t bytes = 0;
    std::map<std::string, uint64_t> files;
    uint64_t total() const;
  };
  struct Job {
    uint64_t ticket = 0;
    uint64_t id = 0;
    Cost cost;  // when it began
    Time since;
    bool running = false;  // else done, and not read yet
    bool read = false;     // a reader came while it ran
  };
  struct ModelState {
    std::shared_ptr<LayerSource> source;
    AccessHistory history;
    Accuracy accuracy;
    std::vector<int> plan;
    bool recorded = false;  // the order of this walk is in the store
    std::map<Key, Job> jobs;
    std::map<uint64_t, std::vector<Key>> wanted;           // by walk, nearest first
    std::map<uint64_t, std::pair<Time, bool>> last_event;  // by walk: when, and whether it was here
    double fetch_ms = 0, pace_ms = 0;                      // moving averages; 0: not known
    Time last_done{};
    uint64_t used = 0;
  };

  ModelState& state_of(const std::string& model, const std::shared_ptr<LayerSource>& source);
  void note_pace(ModelState& state, uint64_t walk, bool here);
  int depth(const ModelState& state) const;  // layers ahead, for now
  int depth_max() const { return std::max(options_.lookahead, options_.depth_max); }
  void cancel_unwanted(ModelState& state);
  void fetch_wanted(const std::string& model, ModelState& state, const std::vector<Key>& wanted);
  void done(const std::string& model, Key key, uint64_t id, bool ok);
  void record_order(const std::string& model, ModelState& state);
  static Cost cost_of(LayerSource& source, const Key& key);
  // Fetched ahead and not read yet, of all models.
  Cost outstanding();
  void publish_depth();

  const SchedulerOptions options_;
  Executor& executor_;
  OrderStore& orders_;
  const std::function<Time()> now_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // read on the executor
  std::map<std::string, ModelState> models_;
  uint64_t clock_ = 0, next_id_ = 1;
  int next_turn_ = 0;
  bool stopped_ = false;

  mutable std::mutex stats_mutex_;  // guards stats_
  PrefetchStats stats_;
};

}  // namespace nexus::prefetch
