// nexus-tune: measures what this machine's disks, network and GPU link carry, and with which
// settings; a mount uses what it finds.
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "backend/io/tuning.h"
#include "backend/store/disk_io.h"
#include "tools/common/size.h"
#include "tools/common/token.h"
#include "tools/nexus-tune/fast_paths.h"
#include "tools/nexus-tune/link.h"
#include "tools/nexus-tune/load.h"
#include "tools/nexus-tune/progress.h"
#include "tools/nexus-tune/report.h"
#include "tools/nexus-tune/sweep_command.h"

namespace nexus::tune {
namespace {

std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// The first Ctrl-C ends the measurement, the second the process.
void catch_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

int failed(const Error& error) {
  std::fprintf(stderr, "nexus-tune: %s\n", tools::printable(error.what).c_str());
  return 1;
}

int print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  return std::fflush(stdout) == 0 ? 0 : 1;
}

int print(const Json& json) {
  return print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

int link_command(const tools::ConfigFlags& flags, const std::string& model,
                 const LinkOptions& options, bool json, bool store) {
  const tools::Environment environment = tools::process_environment();
  auto config = tools::load_config(flags, environment);
  if (!config) return failed(config.error());
  auto token = tools::find_token(config->token_file, environment);
  if (!token) return failed(token.error());
  auto result = [&] {
    ProgressBar bar("link");
    return measure_link(
        *config, token->value, model, options, [&](int done, int total) { bar.show(done, total); },
        stop);
  }();
  if (!result) return failed(result.error());
  if (store && result->best >= 0) {
    if (auto made = make_private_dir(config->cache_dir); !made) return failed(made.error());
    Json machine = io::load_machine(config->cache_dir);
    if (!machine["link"].is_object()) machine["link"] = Json::object();
    Json entry = link_json(*result);
    entry["measured_at"] = now_utc();
    machine["link"][result->origin] = std::move(entry);
    if (auto stored = io::store_machine(config->cache_dir, machine); !stored) {
      return failed(stored.error());
    }
  }
  const int status = json ? print(link_json(*result)) : print(link_table(*result));
  return result->interrupted && status == 0 ? 130 : status;
}

int load_command(LoadOptions options) {
  if (options.file.empty()) {
    if (options.zone.empty()) return failed({Code::kInvalid, "load: which FILE, or --zone?"});
    auto file = largest_object(options.zone);
    if (!file) return failed(file.error());
    options.file = *file;
  }
  auto loaded = load_file(options);
  return loaded ? print(*loaded) : failed(loaded.error());
}

// Of a given zone, else of the configured ones the first that is there.
int why_command(const tools::ConfigFlags& flags, const std::string& zone, bool json) {
  std::optional<Zone> opened;
  if (!zone.empty()) {
    auto found = look_at_zone(zone);
    if (!found) return failed(found.error());
    opened = std::move(*found);
  } else {
    auto config = tools::load_config(flags, tools::process_environment());
    if (!config) return failed(config.error());
    for (const std::string& path : zone_paths(*config)) {
      if (opened) break;
      if (auto found = look_at_zone(path)) opened = std::move(*found);
    }
  }
  const auto paths = fast_paths(system_facts(), opened ? &*opened : nullptr);
  if (json) return print(fast_paths_json(paths));
  const std::string text = fast_paths_text(paths);
  return print(text.empty() ? "every fast path is on\n" : text);
}

int run(int argc, char** argv) {
  CLI::App app("Finds the best I/O settings of this machine; mounts use them from then on.",
               "nexus-tune");
  app.set_version_flag("--version", "nexus-tune " NEXUS_VERSION);
  app.require_subcommand(0, 1);
  app.fallthrough();
  tools::ConfigFlags flags;
  app.add_option("--config", flags.config_file, "Config file, as of nexusfs mount");
  app.add_option("--cache-dir", flags.cache_dir, "Whose zones (default: the configured one)");

  SweepArguments sweep;
  bool quick = false;
  app.add_option("--zone", sweep.zone, "Measure this directory instead of the configured zones");
  auto* full = app.add_flag("--full", sweep.full, "Every configuration (100 to 300)");
  app.add_flag("--quick", quick, "A guided search, under a minute (the default)")->excludes(full);
  app.add_option("--size", sweep.size, "SIZE of the test file (default: 512MiB, or what fits)");
  app.add_option("--runs", sweep.runs, "Runs of each configuration that counts")
      ->check(CLI::Range(1, 100));
  app.add_flag("--read-only", sweep.read_only, "Do not measure writes");
  app.add_flag("--json", sweep.json, "Print JSON and nothing else");
  app.add_option("--csv", sweep.csv, "Write every point to this file");
  app.add_option("--html", sweep.html, "Write a report with plots to this file");
  app.add_option("--scratch", sweep.scratch, "Test file, overwritten and kept (default: unnamed)");
  app.add_flag("--store,!--no-store", sweep.store, "Keep the result for the next mount (default)");

  CLI::App* link = app.add_subcommand("link", "Measure the way to a model's origin");
  std::string model;
  LinkOptions link_options;
  link->add_option("MODEL", model, "An alias, or ORG/NAME[@REV]")->required();
  link->add_option("--endpoint", flags.endpoint, "Hub to ask");
  link->add_option("--token-file", flags.token_file, "File with the hub's token");
  link->add_option("--seconds", link_options.point_seconds, "For each point")
      ->check(CLI::Range(0.01, 600.0));
  CLI::App* load = app.add_subcommand("load", "Load a file, cold, with the stored settings");
  LoadOptions load_options;
  load->add_option("FILE", load_options.file, "The file (default: the largest object of --zone)");
  load->add_flag("--write", load_options.write, "Write the file's bytes back from memory instead");
  CLI::App* why = app.add_subcommand("why", "Say which fast paths are off, and what to do");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  catch_signals();
  if (*link) return link_command(flags, model, link_options, sweep.json, sweep.store);
  if (*load) {
    load_options.zone = sweep.zone;
    return load_command(std::move(load_options));
  }
  if (*why) return why_command(flags, sweep.zone, sweep.json);
  return sweep_command(flags, sweep, stop);
}

}  // namespace
}  // namespace nexus::tune

int main(int argc, char** argv) {
  return nexus::tune::run(argc, argv);
}
