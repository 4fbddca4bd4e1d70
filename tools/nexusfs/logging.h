// Where log lines go: a terminal that also shows a progress line, standard error, a file.
#pragma once

#include <spdlog/sinks/base_sink.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

#include "backend/base/error.h"

namespace nexus::tools {

// Log lines above, one progress line below that is redrawn in place. On standard error, a terminal.
class TerminalSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void set_progress(const std::string& line);  // "" clears it
  static size_t columns();                     // of the terminal; 80 when it does not say

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  void flush_() override {}

 private:
  void redraw(const std::string& above);
  std::string progress_;  // guarded by the base class's mutex_
};

struct LogOptions {
  bool foreground = false;
  std::string file;     // "" in the foreground: none
  bool rotate = false;  // the daemon's own file is kept small; a file that the user chose is his
};

// Replaces the default logger; files are made 0600. Returns the terminal's sink when there is one.
Result<std::shared_ptr<TerminalSink>> start_logging(const LogOptions& options);

}  // namespace nexus::tools
