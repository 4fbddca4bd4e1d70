// Brings the rest of the models that are used while nobody reads: below everything else, into space that is free.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"

namespace nexus::prefetch {

struct FillOptions {
  std::chrono::milliseconds idle{5000};        // without a reader's request
  std::chrono::milliseconds check_every{1000};
  // Fetched at once: a reader who joins waits for no more than this.
  uint64_t step_bytes = 64 << 20;
};

// What it looks at, called on the executor.
struct FillHooks {
  std::function<uint64_t()> activity;  // another number whenever a reader has asked for something
  std::function<uint64_t()> room;      // bytes that may come without anything being evicted
  std::function<std::vector<std::shared_ptr<Object>>()> wanted;  // in the order to fill them
};

// One fetch at a time, cancelled by any reader's request. What could not be fetched is not tried again. Everything
// happens on the executor; stop() from anywhere.
class BackgroundFill : public std::enable_shared_from_this<BackgroundFill> {
 public:
  // `cache` and `executor` outlive the last callback of either.
  BackgroundFill(FillOptions options, FillHooks hooks, Cache& cache, Executor& executor);

  void start();  // once
  // Cancels what is on its way and does no more.
  void stop();

 private:
  void check();
  bool idle();
  void fetch_next();
  void fetch(const std::shared_ptr<Object>& object, ByteRange range);

  const FillOptions options_;
  const FillHooks hooks_;
  Cache& cache_;
  Executor& executor_;

  // The executor's.
  bool stopped_ = false;
  bool fetching_ = false;
  uint64_t ticket_ = 0;
  uint64_t activity_ = 0;
  std::chrono::milliseconds quiet_{0};  // checks without activity, in time
  std::set<std::string> failed_;        // keys of objects
};

}  // namespace nexus::prefetch
