#include "tools/nexusfs/mount_command.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "backend/net/redact.h"
#include "fs/mountpoint.h"
#include "tools/common/mount_table.h"
#include "tools/common/token.h"
#include "tools/nexusfs/daemon.h"
#include "tools/nexusfs/guard.h"
#include "tools/nexusfs/logging.h"
#include "tools/nexusfs/mountpoint.h"
#include "tools/nexusfs/process.h"
#include "tools/nexusfs/progress_display.h"

namespace nexus::tools {
namespace {

struct Plan {
  Config config;
  Token token;
  std::string mountpoint;
  bool foreground = false;
};

// Everything that can be found out before there is a daemon.
Result<Plan> make_plan(const MountArguments& arguments) {
  const Environment environment = process_environment();
  auto config = load_config(arguments.flags, environment);
  if (!config) return tl::unexpected(config.error());
  auto token = find_token(config->token_file, environment);
  if (!token) return tl::unexpected(token.error());
  auto name = canonical_mountpoint(arguments.mountpoint);
  if (!name) return fail(name.error(), "mountpoint");
  if (auto ok = check_outside(*name, *config); !ok) return tl::unexpected(ok.error());
  auto mountpoint = prepare_mountpoint(arguments.mountpoint, environment);
  if (!mountpoint) return tl::unexpected(mountpoint.error());
  return Plan{std::move(*config), std::move(*token), std::move(*mountpoint), arguments.foreground};
}

// Made here and not by the store alone, because the log lies in it. umask makes it 0700.
Result<void> make_cache_dir(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail(Code::kInvalid, "cache_dir " + path + ": " + error.message());
  return {};
}

std::string log_file_of(const Plan& plan) {
  if (!plan.config.log_file.empty()) return plan.config.log_file;
  return plan.foreground ? "" : plan.config.cache_dir + "/nexusfs.log";
}

bool is_plain_http(const std::string& url) {
  return url.rfind("http://", 0) == 0;
}

bool is_loopback(const std::string& url) {
  for (const char* host : {"http://127.", "http://localhost", "http://[::1]"}) {
    if (url.rfind(host, 0) == 0) return true;
  }
  return false;
}

void log_start(const Plan& plan) {
  const Config& config = plan.config;
  spdlog::info("nexusfs " NEXUS_VERSION " for {}: hub {}{}, cache {}", plan.mountpoint,
               redact_url(config.endpoint), config.offline ? " (offline)" : "", config.cache_dir);
  if (!config.file.empty()) spdlog::info("config: {}", config.file);
  if (!plan.token.value.empty()) spdlog::info("token: from {}", plan.token.source);
  for (const std::string& key : config.without_effect)
    spdlog::warn("{}: no effect in this version", key);
  if (!plan.token.value.empty() && is_plain_http(config.endpoint) &&
      !is_loopback(config.endpoint)) {
    spdlog::warn("the token goes to {} unencrypted", redact_url(config.endpoint));
  }
}

int serve(Plan plan, Starter starter) {
  const auto give_up = [&](const Error& error) {
    starter.failed(error.what);
    return 1;
  };
  if (auto ok = make_cache_dir(plan.config.cache_dir); !ok) return give_up(ok.error());
  const LogOptions log{plan.foreground, log_file_of(plan), plan.config.log_file.empty()};
  auto terminal = start_logging(log);
  if (!terminal) return give_up(terminal.error());
  log_start(plan);

  SignalThread::block();
  auto guard = Guard::start();
  if (!guard) spdlog::warn("no guard for the mount: {}", guard.error().what);
  auto daemon = Daemon::start(plan.config, plan.token.value, plan.mountpoint);
  if (!daemon) {
    spdlog::error("{}", daemon.error().what);
    // In the foreground the log has said it.
    if (!plan.foreground) starter.failed(daemon.error().what);
    return 1;
  }
  Result<void> ended;
  {
    // The second signal: whatever does not end is left behind, but not the mount.
    const auto abandon = [mountpoint = plan.mountpoint] {
      fs::detach_mount(mountpoint);
      _exit(1);
    };
    SignalThread signals([&] { (*daemon)->request_stop(); }, abandon, plan.foreground);
    std::optional<ProgressDisplay> display;
    if (plan.foreground) display.emplace((*daemon)->cache(), *terminal);
    if (guard) guard->watch(plan.mountpoint);
    spdlog::info("mounted on {}", plan.mountpoint);
    if (!starter.mounted()) (*daemon)->request_stop();
    ended = (*daemon)->run();
  }
  if (!ended) spdlog::error("{}", ended.error().what);
  daemon->reset();
  spdlog::info("ended");
  return ended ? 0 : 1;
}

}  // namespace

int mount_command(const MountArguments& arguments) {
  const auto report = [](const Error& error) {
    std::fprintf(stderr, "nexusfs: %s\n", error.what.c_str());
    return 1;
  };
  auto plan = make_plan(arguments);
  if (!plan) return report(plan.error());
  prepare_process();
  if (plan->foreground) return end_process(serve(std::move(*plan), Starter()));
  auto starter = daemonise([&] { return mount_answers(plan->mountpoint); }, log_file_of(*plan));
  if (!starter) return report(starter.error());
  return end_process(serve(std::move(*plan), std::move(*starter)));
}

}  // namespace nexus::tools
