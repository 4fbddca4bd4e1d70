// One `nexusctl warm`: brings files into the cache, several at a time, behind what readers wait
// for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"

namespace nexus::tools {

struct WarmFile {
  std::string path;  // in the model
  std::shared_ptr<Object> object;
};

struct WarmState {
  size_t files_done = 0, files_total = 0;
  uint64_t bytes_done = 0, bytes_total = 0;
  std::vector<std::string> failed;  // "path: why"
};

// Lives until its last file is here or has failed, whoever else lets go of it. Thread-safe.
class WarmJob : public std::enable_shared_from_this<WarmJob> {
 public:
  // How many files are fetched at once; each is several requests (max_connections bounds those).
  static constexpr size_t kFilesAtOnce = 4;

  // How many jobs there may be at once, and are.
  static constexpr int kJobsMax = 32;
  static int count();

  // `cache` and `timers` outlive the job.
  WarmJob(Cache& cache, std::vector<WarmFile> files);
  ~WarmJob();
  WarmJob(const WarmJob&) = delete;
  WarmJob& operator=(const WarmJob&) = delete;
  // `progress` now and then, on `timers`; `done` once, from one of the cache's threads.
  void start(Executor& timers, std::function<void(const WarmState&)> progress,
             std::function<void(const WarmState&)> done);
  // What is on its way and nobody else wants ends; done follows soon.
  void cancel();
  WarmState state() const;

 private:
  struct Flight {
    size_t file = 0;
    uint64_t ticket = 0;  // 0: not known yet
  };
  void fill();
  void finished(size_t file, const Result<void>& result);
  void tick(Executor& timers);
  bool over_locked();  // true once, when nothing more will happen

  Cache& cache_;
  const std::vector<WarmFile> files_;
  std::function<void(const WarmState&)> progress_, done_;  // constant once started

  mutable std::mutex mutex_;  // guards the rest
  size_t next_ = 0, done_count_ = 0;
  std::vector<Flight> flights_;
  std::vector<std::string> failed_;
  bool filling_ = false, cancelled_ = false, over_ = false;
};

}  // namespace nexus::tools
