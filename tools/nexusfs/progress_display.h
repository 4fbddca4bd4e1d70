// Shows what is being fetched while `nexusfs mount --foreground` runs: a line at the bottom of a
// terminal, redrawn twice a second, else a log line every few seconds; and a log line for every
// file that is here.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "backend/cache/cache.h"
#include "tools/nexusfs/logging.h"

namespace nexus::tools {

class ProgressDisplay {
 public:
  // `cache` outlives the display; `terminal` may be null.
  ProgressDisplay(const Cache& cache, std::shared_ptr<TerminalSink> terminal);
  ~ProgressDisplay();  // stops, clears the line
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;

 private:
  void run();
  void log_completed();

  const Cache& cache_;
  const std::shared_ptr<TerminalSink> terminal_;
  std::mutex mutex_;  // guards stopping_
  std::condition_variable wake_;
  bool stopping_ = false;
  // Of the thread alone.
  bool looked_ = false;
  bool moving_ = false;             // something was on its way at the last look
  std::set<std::string> resident_;  // at the last look
  uint64_t bytes_ = 0;              // counters then
  std::thread thread_;
};

}  // namespace nexus::tools
