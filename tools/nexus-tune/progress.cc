#include "tools/nexus-tune/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "tools/common/size.h"

namespace nexus::tune {

std::string progress_line(const std::string& what, int done, int total,
                          std::chrono::duration<double> so_far) {
  constexpr int kWidth = 30;
  total = std::max(total, 1);
  done = std::clamp(done, 0, total);
  const int filled = done * kWidth / total;
  char text[96];
  std::snprintf(text, sizeof text, "%-6s%5d/%d [", what.c_str(), done, total);
  std::string line = text + std::string(static_cast<size_t>(filled), '=') +
                     std::string(static_cast<size_t>(kWidth - filled), ' ') + "]";
  if (done > 0) {
    const double left = so_far.count() / done * (total - done);
    line += " " + tools::format_duration(static_cast<uint64_t>(left + 0.5)) + " left";
  }
  return line;
}

ProgressBar::ProgressBar(std::string what)
    : what_(std::move(what)), terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (terminal_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::show(int done, int total) {
  if (!terminal_) return;
  const std::string line =
      progress_line(what_, done, total, std::chrono::steady_clock::now() - start_);
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
  std::fflush(stderr);
}

}  // namespace nexus::tune
