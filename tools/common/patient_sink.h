// A log sink in front of another one that may hang, as a file does whose disk does not answer. The
// lines are written by a thread of its own; who logs waits until his is, but only for so long: then
// lines are kept (a few; the number of those that are not is logged), and nobody waits, until the
// disk is back.
//
// Thread safety: every method may be called from any thread; the pattern is set before the first
// line.
#pragma once

#include <spdlog/sinks/sink.h>

#include <chrono>
#include <memory>
#include <string>

namespace nexus::tools {

class PatientSink final : public spdlog::sinks::sink {
 public:
  static constexpr size_t kLinesMax = 1000;
  explicit PatientSink(spdlog::sink_ptr inner,
                       std::chrono::milliseconds patience = std::chrono::seconds(10));
  ~PatientSink() override;  // what hangs is left behind
  PatientSink(const PatientSink&) = delete;
  PatientSink& operator=(const PatientSink&) = delete;

  void log(const spdlog::details::log_msg& message) override;
  void flush() override {}  // each line is
  void set_pattern(const std::string& pattern) override;
  void set_formatter(std::unique_ptr<spdlog::formatter> formatter) override;

  // As HangGuard::threads_alive(): each sink's own thread, and those that were left behind.
  static int threads_alive();

 private:
  struct State;
  static void serve(const std::shared_ptr<State>& state);
  const std::shared_ptr<State> state_;
};

}  // namespace nexus::tools
