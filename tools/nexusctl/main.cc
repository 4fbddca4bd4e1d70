// nexusctl: asks a running mount, over its control socket.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "tools/common/control_client.h"
#include "tools/common/mount_table.h"
#include "tools/common/size.h"
#include "tools/nexusctl/render.h"

namespace nexus::tools {
namespace {

constexpr auto kAnswerWait = std::chrono::seconds(30);
constexpr auto kRefreshWait = std::chrono::minutes(10);  // a slow hub and its retries
constexpr auto kProbeWait = std::chrono::seconds(3);

struct Arguments {
  std::string mountpoint, model;
  bool json = false;
};

Result<ControlClient> connect_given(const std::string& path, const Environment& environment) {
  auto mountpoint = canonical_mountpoint(path);
  if (!mountpoint) return tl::unexpected(mountpoint.error());
  return connect_mount(*mountpoint, environment);
}

// The only mount that this user can talk to. With several, each is asked for its mountpoint.
Result<ControlClient> connect_only(const Environment& environment) {
  std::vector<std::string> alive;
  std::optional<Error> refused;
  for (const std::string& path : find_sockets(socket_directories(geteuid(), environment))) {
    auto client = ControlClient::connect(path);
    if (client) alive.push_back(path);
    if (!client && client.error().code == Code::kAccess) refused = client.error();
  }
  if (alive.size() == 1) return ControlClient::connect(alive.front());
  if (alive.empty() && refused) return tl::unexpected(*refused);
  if (alive.empty()) return fail(Code::kNotFound, "no nexusfs mount is running");
  std::string all;
  for (const std::string& path : alive) {
    auto client = ControlClient::connect(path);
    if (!client) continue;
    const auto status = client->call(Json{{"command", "status"}}, kProbeWait);
    const bool named =
        status && status->contains("mountpoint") && (*status)["mountpoint"].is_string();
    all += "\n  " +
           (named ? printable((*status)["mountpoint"].get<std::string>()) : "? (" + path + ")");
  }
  return fail(Code::kInvalid, "several mounts are running; choose one with --mount:" + all);
}

Result<Json> ask(const Arguments& arguments, Json request, std::chrono::milliseconds wait) {
  const Environment environment = process_environment();
  auto client = arguments.mountpoint.empty() ? connect_only(environment)
                                             : connect_given(arguments.mountpoint, environment);
  if (!client) return tl::unexpected(client.error());
  if (!arguments.model.empty()) request["model"] = arguments.model;
  return client->call(request, wait);
}

int show(const Result<Json>& answer, bool json,
         const std::function<std::string(const Json&)>& render) {
  if (!answer) {
    std::fprintf(stderr, "nexusctl: %s\n", answer.error().what.c_str());
    return 1;
  }
  std::string out;
  if (json) {
    out = answer->dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  } else {
    out = render(*answer);
  }
  std::fwrite(out.data(), 1, out.size(), stdout);
  return std::fflush(stdout) == 0 ? 0 : 1;
}

int run(int argc, char** argv) {
  CLI::App app("Looks into a running NexusFS mount.", "nexusctl");
  app.set_version_flag("--version", "nexusctl " NEXUS_VERSION);
  app.require_subcommand(1);
  Arguments arguments;
  app.add_option("--mount", arguments.mountpoint, "The mountpoint (default: the only one)");
  const auto command = [&](const char* name, const char* help) {
    CLI::App* made = app.add_subcommand(name, help);
    made->add_flag("--json", arguments.json, "Print JSON");
    return made;
  };
  CLI::App* status = command("status", "The daemon, its origins, zones and mounted models");
  CLI::App* list = command("ls", "What is cached and what is being fetched");
  list->add_option("MODEL", arguments.model, "An alias, ORG/NAME or ORG/NAME@REV");
  CLI::App* stats = command("stats", "Counters of the cache");
  CLI::App* refresh = command("refresh", "Ask the origin whether a model's revision has moved");
  refresh->add_option("MODEL", arguments.model, "An alias, ORG/NAME or ORG/NAME@REV")->required();
  std::string action;
  CLI::App* plan = command("plan", "The order of layers that read-ahead replays for a model");
  plan->add_option("ACTION", action, "record, show or drop")
      ->required()
      ->check(CLI::IsMember({"record", "show", "drop"}));
  plan->add_option("MODEL", arguments.model, "An alias, ORG/NAME or ORG/NAME@REV")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }

  if (*status) {
    return show(ask(arguments, Json{{"command", "status"}}, kAnswerWait), arguments.json,
                render_status);
  }
  if (*list)
    return show(ask(arguments, Json{{"command", "ls"}}, kAnswerWait), arguments.json,
                render_objects);
  if (*plan) {
    return show(ask(arguments, Json{{"command", "plan"}, {"action", action}}, kAnswerWait),
                arguments.json, render_plan);
  }
  if (*stats) {
    return show(ask(arguments, Json{{"command", "stats"}}, kAnswerWait), arguments.json,
                render_stats);
  }
  return show(ask(arguments, Json{{"command", "refresh"}}, kRefreshWait), arguments.json,
              [&](const Json& commits) { return render_refresh(arguments.model, commits); });
}

}  // namespace
}  // namespace nexus::tools

int main(int argc, char** argv) {
  return nexus::tools::run(argc, argv);
}
