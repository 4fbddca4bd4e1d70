#include "tools/common/progress_text.h"

#include <algorithm>

#include "tools/common/size.h"

namespace nexus::tools {

std::string progress_line(const std::vector<Progress>& progress, size_t columns) {
  if (progress.empty()) return "";
  uint64_t done = 0, total = 0;
  double rate = 0;
  const Progress* shown = &progress.front();
  for (const Progress& one : progress) {
    done += one.bytes_done;
    total += one.bytes_total;
    rate += one.bytes_per_s;
    if (one.waiters > shown->waiters) shown = &one;
  }
  std::string line =
      std::to_string(progress.size()) + (progress.size() == 1 ? " file, " : " files, ");
  line += format_size(done) + " of " + format_size(total) + ", " + format_rate(rate);
  if (rate >= 1 && total > done) {
    line += ", " +
            format_duration(static_cast<uint64_t>(static_cast<double>(total - done) / rate)) +
            " left";
  }
  const uint64_t percent =
      shown->bytes_total == 0 ? 100 : shown->bytes_done * 100 / shown->bytes_total;
  line += ": " + printable(shown->name) + " " + std::to_string(percent) + " %";
  if (columns > 0 && line.size() > columns) line.resize(columns);
  return line;
}

}  // namespace nexus::tools
