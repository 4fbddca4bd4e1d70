#include "tools/nexusfs/logging.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <utility>
#include <vector>

#include "tools/common/patient_sink.h"

namespace nexus::tools {
namespace {

constexpr const char* kPattern = "%Y-%m-%d %H:%M:%S.%e %l %v";
constexpr size_t kRotateBytes = 16 << 20;
constexpr size_t kRotatedFiles = 2;
constexpr const char* kClearLine = "\r\033[K";

}  // namespace

void TerminalSink::set_progress(const std::string& line) {
  std::lock_guard lock(mutex_);
  if (line == progress_) return;
  progress_ = line;
  redraw("");
}

size_t TerminalSink::columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col - 1u;  // a full line would wrap
}

void TerminalSink::sink_it_(const spdlog::details::log_msg& message) {
  spdlog::memory_buf_t text;
  formatter_->format(message, text);
  redraw(std::string(text.data(), text.size()));
}

void TerminalSink::redraw(const std::string& above) {
  const std::string text = kClearLine + above + progress_;
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

Result<std::shared_ptr<TerminalSink>> start_logging(const LogOptions& options) {
  try {
    std::vector<spdlog::sink_ptr> sinks;
    std::shared_ptr<TerminalSink> terminal;
    if (options.foreground && isatty(STDERR_FILENO)) {
      terminal = std::make_shared<TerminalSink>();
      sinks.push_back(terminal);
    } else if (options.foreground) {
      sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
    }
    if (!options.file.empty()) {
      spdlog::sink_ptr file;
      if (options.rotate) {
        file = std::make_shared<spdlog::sinks::rotating_file_sink_mt>(options.file, kRotateBytes,
                                                                      kRotatedFiles);
      } else {
        file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
      }
      // It lies on the cache's disk, as a rule: when that hangs, who logs must not.
      sinks.push_back(std::make_shared<PatientSink>(std::move(file)));
      struct stat status {};
      // One that was there may be readable by others. Devices and pipes are left as they are.
      if (stat(options.file.c_str(), &status) == 0 && S_ISREG(status.st_mode)) {
        chmod(options.file.c_str(), 0600);
      }
    }
    auto logger = std::make_shared<spdlog::logger>("nexusfs", sinks.begin(), sinks.end());
    logger->set_pattern(kPattern);
    logger->set_level(spdlog::level::info);
    logger->flush_on(spdlog::level::info);
    // A log that fails (a full disk) must neither end the mount nor print to a standard error that
    // is gone.
    logger->set_error_handler([](const std::string&) {});
    spdlog::set_default_logger(std::move(logger));
    return terminal;
  } catch (const spdlog::spdlog_ex& error) {
    return fail(Code::kInvalid, "log file " + options.file + ": " + error.what());
  }
}

}  // namespace nexus::tools
