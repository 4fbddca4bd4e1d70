#include "tools/nexus-tune/load.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "backend/io/engine.h"
#include "backend/io/memory.h"
#include "backend/io/tuning.h"
#include "tools/nexus-tune/disk_bench.h"

namespace nexus::tune {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string zone_above(const std::string& file) {
  std::error_code error;
  fs::path at = fs::canonical(file, error);
  while (!error && at.has_relative_path()) {
    at = at.parent_path();
    if (fs::exists(at / io::kTuningFile, error)) return at.string();
  }
  return "";
}

}  // namespace

Result<std::string> largest_object(const std::string& zone) {
  std::error_code error;
  std::string largest;
  uintmax_t most = 0;
  fs::recursive_directory_iterator it(zone + "/objects",
                                      fs::directory_options::skip_permission_denied, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    std::error_code of_file;
    if (!it->is_regular_file(of_file) || it->file_size(of_file) <= most) continue;
    most = it->file_size(of_file);
    largest = it->path().string();
  }
  if (largest.empty()) return fail(Code::kNotFound, "zone " + zone + " holds no object to load");
  return largest;
}

Result<nlohmann::json> load_file(const LoadOptions& options) {
  const auto refused = [&](int error) {
    return fail(error == EACCES ? Code::kAccess : Code::kNotFound,
                options.file + ": " + std::generic_category().message(error));
  };
  const UniqueFd file(
      ::open(options.file.c_str(), (options.write ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  struct stat st;
  if (!file || ::fstat(file.get(), &st) != 0) return refused(errno);
  if (!S_ISREG(st.st_mode) || st.st_size == 0) {
    return fail(Code::kInvalid, options.file + " is not a file with bytes in it");
  }
  const auto bytes = static_cast<uint64_t>(st.st_size);

  const std::string zone = options.zone.empty() ? zone_above(options.file) : options.zone;
  io::LoadedTuning tuning;
  if (!zone.empty()) tuning = io::load_tuning(zone);
  const bool stored = tuning.state == io::TuningState::kFresh;
  nlohmann::json reasons = nlohmann::json::array();
  if (!tuning.reason.empty()) reasons.push_back("tuning: " + tuning.reason);

  const auto preparing = Clock::now();
  io::Engine engine(tuning.read_settings(), tuning.write_settings());
  auto memory = io::SharedMemory::make(bytes);
  if (!memory) return tl::unexpected(memory.error());
  const double prepared = seconds_since(preparing);
  const auto range = memory->bytes().first(bytes);
  if (options.write) {
    // What is overwritten stays what it was.
    if (auto read = engine.read(file.get(), 0, range); !read) return tl::unexpected(read.error());
  }
  ::syncfs(file.get());
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  const std::string not_cold = drop_page_cache();
  if (!not_cold.empty()) reasons.push_back(not_cold);

  const io::EngineReport before = engine.report();
  const auto start = Clock::now();
  auto moved = options.write ? engine.write_pinned(file.get(), 0, range)
                             : engine.read_pinned(file.get(), 0, range);
  if (moved && options.write && ::fdatasync(file.get()) != 0)
    moved = disk_error(errno, "fdatasync");
  const double seconds = seconds_since(start);
  if (!moved) return fail(moved.error(), options.file);

  const io::EngineReport report = engine.report();
  if (!report.reason.empty()) reasons.push_back("io_uring: " + report.reason);
  if (!report.direct_reason.empty()) reasons.push_back("O_DIRECT: " + report.direct_reason);
  if (!report.registered_reason.empty()) {
    reasons.push_back("registered buffers: " + report.registered_reason);
  }
  return nlohmann::json{
      {"file", options.file},
      {"bytes", bytes},
      {"seconds", seconds},
      {"throughput_gbps", static_cast<double>(bytes) / 1e9 / std::max(seconds, 1e-9)},
      {"prepare_s", prepared},
      {"settings",
       io::settings_json(options.write ? engine.write_settings() : engine.read_settings())},
      {"settings_from", stored ? zone + " (" + tuning.tuning.measured_at + ")" : "defaults"},
      {"io_uring", report.io_uring},
      {"direct", report.direct_calls > before.direct_calls},
      {"registered", report.pinned_calls > 0},
      {"cold", not_cold.empty()},
      {"reasons", reasons}};
}

}  // namespace nexus::tune
