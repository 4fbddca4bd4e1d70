#include "tools/nexusfs/progress_display.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "tools/common/progress_text.h"
#include "tools/common/size.h"

namespace nexus::tools {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(500);
constexpr auto kLogEvery = std::chrono::milliseconds(5000);

}  // namespace

ProgressDisplay::ProgressDisplay(const Cache& cache, std::shared_ptr<TerminalSink> terminal)
    : cache_(cache), terminal_(std::move(terminal)), thread_([this] { run(); }) {}

ProgressDisplay::~ProgressDisplay() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (terminal_) terminal_->set_progress("");
}

void ProgressDisplay::run() {
  log_completed();
  auto next_log = std::chrono::steady_clock::now() + kLogEvery;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kRedraw, [this] { return stopping_; })) {
    log_completed();
    const std::string line =
        progress_line(cache_.progress(), terminal_ ? TerminalSink::columns() : 0);
    if (terminal_) {
      terminal_->set_progress(line);
    } else if (!line.empty() && std::chrono::steady_clock::now() >= next_log) {
      spdlog::info("fetching {}", line);
      next_log = std::chrono::steady_clock::now() + kLogEvery;
    }
  }
}

// Small files come and go between two looks, so what is complete is asked for, not what is on its
// way.
void ProgressDisplay::log_completed() {
  const CacheStats stats = cache_.stats();
  // Listing everything costs more than the counters. Once more after the last byte: it is hashed
  // then.
  // What comes from a local directory is not downloaded, but it is cached.
  const uint64_t bytes = stats.bytes_downloaded + stats.disk_cache_bytes;
  const bool moved = bytes != bytes_ || stats.active_downloads > 0;
  if (looked_ && !moved && !moving_) return;
  moving_ = moved;
  bytes_ = bytes;
  std::set<std::string> now;
  for (const CachedObject& object : cache_.list()) {
    if (object.info.state != ObjectState::kResident) continue;
    now.insert(object.name);
    // What an earlier run left is not news.
    if (!looked_ || resident_.count(object.name)) continue;
    spdlog::info("fetched {}, {}", printable(object.name), format_size(object.info.size));
  }
  looked_ = true;
  resident_.swap(now);
}

}  // namespace nexus::tools
