#include "tools/nexus-tune/sweep_command.h"

#include <sys/stat.h>

#include <cstdio>
#include <fstream>

#include "backend/io/engine.h"
#include "tools/common/size.h"
#include "tools/nexus-tune/disk_bench.h"
#include "tools/nexus-tune/gpu_copy.h"
#include "tools/nexus-tune/progress.h"
#include "tools/nexus-tune/report.h"

namespace nexus::tune {

namespace {

constexpr uint64_t kUsualBytes = 512 << 20;
constexpr uint64_t kCopyBytes = uint64_t{1} << 30;
constexpr double kQuickFileSeconds = 6;  // that a guided search spends on writing its test file

// --zone DIR, or the zones of the configuration, grouped by device. A cache directory stands for
// its zones.
Result<std::vector<ZoneGroup>> zones_of(const tools::Config& config, const std::string& zone) {
  if (zone.empty()) return configured_zones(config);
  struct stat st;
  int inside = 0;
  while (::stat((zone + "/zone_" + std::to_string(inside)).c_str(), &st) == 0) ++inside;
  if (inside == 0) return std::vector<ZoneGroup>{{zone, {zone}}};
  tools::Config of_directory = config;
  of_directory.zones.clear();
  of_directory.cache_dir = zone;
  of_directory.num_zones = inside;
  return configured_zones(of_directory);
}

Result<Report> measure(const std::string& path, const SweepArguments& arguments,
                       const SystemFacts& facts, const std::atomic<bool>& stop) {
  auto zone = open_zone(path, arguments.read_only);
  if (!zone) return tl::unexpected(zone.error());
  std::optional<uint64_t> wanted;
  if (arguments.size) {
    auto size = tools::parse_size(*arguments.size);
    if (!size) return fail(size.error(), "--size");
    if (*size < (1 << 20)) return fail(Code::kInvalid, "--size: at least 1MiB");
    wanted = *size - *size % (1 << 20);
  }
  auto bytes = file_bytes(*zone, wanted, kUsualBytes);
  if (!bytes) return tl::unexpected(bytes.error());
  Report report;
  report.zone = path;
  report.device = zone->device;
  report.full = arguments.full;
  report.fast_paths = fast_paths(facts, &*zone);
  auto bench = [&] {
    ProgressBar bar("file");
    const double seconds_max = arguments.full || wanted ? 0 : kQuickFileSeconds;
    return DiskBench::make(*zone, {*bytes, arguments.scratch, seconds_max, &stop,
                                   [&, all = static_cast<int>(*bytes >> 20)](uint64_t written) {
                                     bar.show(static_cast<int>(written >> 20), all);
                                   }});
  }();
  if (!bench) return tl::unexpected(bench.error());
  report.file_bytes = bench->file_bytes();
  SweepOptions options;
  options.full = arguments.full;
  options.bytes = bench->file_bytes();
  options.runs = arguments.runs;
  options.features = features_of(facts, *zone);
  if (options.bytes < io::kPinBytesMin) options.features.registered = false;
  const auto sweep_of = [&](Direction direction) {
    ProgressBar bar(direction_name(direction));
    return sweep(
        options,
        [&](const io::EngineSettings& settings, uint64_t length) {
          return bench->run(direction, settings, length);
        },
        [&](int done, int total) { bar.show(done, total); }, stop);
  };
  report.read = sweep_of(Direction::kRead);
  if (!arguments.read_only && !stop) report.write = sweep_of(Direction::kWrite);
  report.measured_at = now_utc();
  report.storable = zone->writable;
  if (!zone->writable) {
    report.notes.push_back("the zone is read-only (" + zone->read_only_reason +
                           "): measured with " + zone->existing_file + ", nothing is stored");
  }
  if (!zone->direct) {
    report.notes.push_back("no O_DIRECT (" + zone->direct_reason + "): buffered I/O only");
  }
  if (!facts.io_uring) {
    report.notes.push_back("no io_uring (" + facts.io_uring_reason + "): pread and pwrite only");
  }
  if (const std::string& why = bench->drop_reason(); !why.empty()) {
    report.notes.push_back("the page cache could not be dropped before each point (" + why +
                           "): buffered reads may come from memory; run as root");
  }
  return report;
}

// False: there is nothing to keep.
Result<bool> store(const Report& report, const ZoneGroup& group) {
  const io::Tuning tuning = tuning_of(report);
  if (!tuning.read && !tuning.write) return false;
  for (const std::string& zone : group.zones) {
    if (auto stored = io::store_tuning(zone, tuning); !stored) return fail(stored.error(), "store");
  }
  return true;
}

bool write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out) std::fprintf(stderr, "nexus-tune: %s: cannot be written\n", path.c_str());
  return static_cast<bool>(out);
}

void print_json(const std::vector<Report>& reports) {
  Json json = Json::array();
  for (const Report& report : reports) json.push_back(report_json(report));
  // Zones of several devices are the exception.
  if (reports.size() == 1) json = json.front();
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// Copies to the GPU, where there is one, are the machine's and not a zone's.
void measure_gpu(const std::string& cache_dir, bool keep, const std::atomic<bool>& stop) {
  auto driver = load_cuda_driver();
  auto copies = driver ? measure_copies(*driver, kCopyBytes, stop)
                       : Result<CopyResult>(tl::unexpected(driver.error()));
  if (!copies) {
    std::fprintf(stderr,
                 "nexus-tune: host-to-device copies not measured: %s; install an NVIDIA GPU "
                 "and its driver\n",
                 copies.error().what.c_str());
    return;
  }
  Json entry = copy_json(*copies);
  entry["measured_at"] = now_utc();
  if (copies->best >= 0) {
    const CopyPoint& best = copies->points[static_cast<size_t>(copies->best)];
    std::fprintf(stderr, "nexus-tune: host to %s: %.1f GB/s with a ring of %u x %llu MiB\n",
                 copies->device.c_str(), best.gbps, best.ring_depth,
                 static_cast<unsigned long long>(best.chunk_bytes >> 20));
  }
  if (!keep) return;
  Json machine = io::load_machine(cache_dir);
  machine["host_to_device"] = std::move(entry);
  if (auto stored = io::store_machine(cache_dir, machine); !stored) {
    std::fprintf(stderr, "nexus-tune: %s\n", stored.error().what.c_str());
  }
}

}  // namespace

int sweep_command(const tools::ConfigFlags& flags, const SweepArguments& arguments,
                  const std::atomic<bool>& stop) {
  const auto failed = [](const Error& error) {
    std::fprintf(stderr, "nexus-tune: %s\n", tools::printable(error.what).c_str());
    return 1;
  };
  auto config = tools::load_config(flags, tools::process_environment());
  if (!config) return failed(config.error());
  auto groups = zones_of(*config, arguments.zone);
  if (!groups) return failed(groups.error());
  const SystemFacts facts = system_facts();
  std::vector<Report> reports;
  int status = 0;
  bool stored_any = false;
  for (const ZoneGroup& group : *groups) {
    if (stop) break;
    auto report = measure(group.measured, arguments, facts, stop);
    if (!report) {
      const int shown = failed(report.error());
      if (report.error().code != Code::kCancelled) status = shown;
      continue;
    }
    if (arguments.store && report->storable) {
      auto stored = store(*report, group);
      if (!stored) status = failed(stored.error());
      stored_any = stored_any || (stored && *stored);
    }
    reports.push_back(std::move(*report));
  }
  if (!reports.empty()) {
    if (arguments.json) {
      print_json(reports);
      for (const Report& report : reports) std::fputs(report_remarks(report).c_str(), stderr);
    } else {
      for (const Report& report : reports) std::fputs(report_table(report).c_str(), stdout);
      if (stored_any && status == 0) std::puts("stored; used from the next mount on");
    }
    if (!arguments.csv.empty() && !write_file(arguments.csv, report_csv(reports))) status = 1;
    if (!arguments.html.empty() && !write_file(arguments.html, report_html(reports))) status = 1;
    if (!stop && arguments.zone.empty()) measure_gpu(config->cache_dir, arguments.store, stop);
  }
  if (std::fflush(stdout) != 0) status = 1;
  return stop && status == 0 ? 130 : status;
}

}  // namespace nexus::tune
