// Read-ahead by layers, put together: what fs/ tells it goes to a Scheduler on a thread of its own
// ("nx-prefetch"), which fetches through the cache.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "backend/store/store.h"
#include "prefetch/layer_events.h"
#include "prefetch/scheduler.h"

namespace nexus::prefetch {

enum class PlanAction { kShow, kRecord, kDrop };

// Thread safety: every method may be called from any thread.
class LayerReadAhead final : public LayerEvents {
 public:
  // Outlives the cache's last callback (Cache::stop()); `cache` and `store` outlive stop().
  LayerReadAhead(SchedulerOptions options, Cache& cache, Store& store);
  ~LayerReadAhead() override;  // stop()

  void on_layer(const std::shared_ptr<Model>& model, LayerView view, int layer, bool here) override;
  void on_file(const std::shared_ptr<Model>& model, LayerView view, std::vector<int> layers) override;
  PrefetchStats stats() const { return scheduler_.stats(); }
  // The order in which a model was walked, as it is after `action`; `commit` may be "" where the
  // model is not mounted. done comes from the own thread.
  void plan(PlanAction action, const std::string& repo, const std::string& commit,
            std::function<void(std::vector<int>)> done);
  // Cancels what runs and joins. Later events are dropped. Before Cache::stop(). Idempotent.
  void stop();

 private:
  class Fetcher;
  class Source;
  class Orders final : public OrderStore {
   public:
    explicit Orders(Store& store) : store_(store) {}
    std::vector<int> load(const std::string& model) override;
    void save(const std::string& model, const std::vector<int>& order) override;

   private:
    Store& store_;
  };

  Orders orders_;
  const std::shared_ptr<Fetcher> fetcher_;
  LoopExecutor executor_{"nx-prefetch"};
  Scheduler scheduler_;
};

}  // namespace nexus::prefetch
