// nexusctl: asks a running mount, over its control socket.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tools/common/control_client.h"
#include "tools/common/mount_table.h"
#include "tools/common/size.h"
#include "tools/nexusctl/render.h"
#include "tools/nexusctl/render_config.h"

namespace nexus::tools {
namespace {

constexpr auto kAnswerWait = std::chrono::seconds(30);
constexpr auto kRefreshWait = std::chrono::minutes(10);  // a slow hub and its retries
constexpr auto kLongWait = std::chrono::hours(24);       // Ctrl-C ends it, the daemon's end too
constexpr auto kRedraw = std::chrono::seconds(1);
constexpr auto kProbeWait = std::chrono::seconds(3);
constexpr const char* kModelHelp =
    "An alias, ORG/NAME or ORG/NAME@REV; NAME where only one is known";

struct Arguments {
  std::string mountpoint, model, layer;
  bool json = false, all = false, wait = false, origin = false, once = false;
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
  if (alive.empty()) {
    return fail(Code::kNotFound, geteuid() == 0 ? "no nexusfs mount is running"
                                                : "no nexusfs mount of yours is running");
  }
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

// Draws what a long command reports, where somebody looks at it.
class ProgressLine {
 public:
  explicit ProgressLine(bool wanted) : wanted_(wanted && isatty(STDERR_FILENO)) {}
  ~ProgressLine() {
    if (drawn_) std::fputs("\n", stderr);
  }
  void operator()(const Json& progress) {
    if (!wanted_) return;
    drawn_ = true;
    std::fprintf(stderr, "\r%s\033[K", render_progress(progress).c_str());
  }

 private:
  const bool wanted_;
  bool drawn_ = false;
};

Result<Json> ask(const Arguments& arguments, Json request, std::chrono::milliseconds wait) {
  const Environment environment = process_environment();
  auto client = arguments.mountpoint.empty() ? connect_only(environment)
                                             : connect_given(arguments.mountpoint, environment);
  if (!client) return tl::unexpected(client.error());
  if (!arguments.model.empty()) request["model"] = arguments.model;
  ProgressLine line(!arguments.json);
  return client->call(request, wait, [&line](const Json& progress) { line(progress); });
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

// Once, or every second until Ctrl-C.
int top(const Arguments& arguments) {
  while (true) {
    Json parts;
    for (const char* command : {"status", "stats", "ls"}) {
      auto part = ask(arguments, Json{{"command", command}}, kAnswerWait);
      if (!part) return show(part, false, {});
      parts[command] = std::move(*part);
    }
    const std::string frame = render_top(parts["status"], parts["stats"], parts["ls"]);
    // Home, the frame, and whatever an earlier one left below it goes.
    const std::string out = arguments.once ? frame : "\033[H\033[2J" + frame;
    std::fwrite(out.data(), 1, out.size(), stdout);
    if (std::fflush(stdout) != 0) return 1;
    if (arguments.once) return 0;
    std::this_thread::sleep_for(kRedraw);
  }
}

// The commands that change the cache. Their exit status is 1 also when something was corrupt or
// could not be fetched.
int change(const Arguments& arguments, const std::string& command) {
  Json request = {{"command", command}};
  if (!arguments.layer.empty()) request[command == "warm" ? "layers" : "layer"] = arguments.layer;
  if (arguments.all) request["all"] = true;
  if (arguments.wait) request["wait"] = true;
  if (arguments.origin) request["origin"] = true;
  const auto answer = ask(arguments, std::move(request), kLongWait);
  const int shown = show(answer, arguments.json, [&](const Json& result) -> std::string {
    if (command == "invalidate" || command == "clear") return render_dropped(result);
    if (command == "verify" || command == "optimize")
      return render_verify(result, arguments.origin);
    if (command == "migrate") return render_migration(result);
    if (command == "warm") return render_warm(result, arguments.wait);
    return "";
  });
  if (shown != 0) return shown;
  for (const char* trouble : {"corrupt", "failed"}) {
    if (answer->contains(trouble) && !(*answer)[trouble].empty()) return 1;
  }
  return 0;
}

// An unset variable of a script must not stand for everything.
const CLI::Validator kNotEmpty(
    [](const std::string& word) { return word.empty() ? std::string("is empty") : std::string(); },
    "");

int run(int argc, char** argv) {
  CLI::App app("Looks into a running NexusFS mount.", "nexusctl");
  app.set_version_flag("--version", "nexusctl " NEXUS_VERSION);
  app.require_subcommand(0, 1);  // 1 would not name a word that is none
  Arguments arguments;
  app.add_option("--mount", arguments.mountpoint, "The mountpoint (default: the only one)");
  const auto command = [&](const char* name, const char* help) {
    CLI::App* made = app.add_subcommand(name, help);
    made->add_flag("--json", arguments.json, "Print JSON");
    return made;
  };
  CLI::App* status = command("status", "The daemon, its origins, zones and mounted models");
  CLI::App* list = command("ls", "What is cached and what is being fetched");
  list->add_option("MODEL", arguments.model, kModelHelp)->check(kNotEmpty);
  CLI::App* stats = command("stats", "Counters of the cache");
  CLI::App* config = command("config", "What the mount was told, and the I/O settings it found");
  CLI::App* refresh = command("refresh", "Ask the origin whether a model's revision has moved");
  refresh->add_option("MODEL", arguments.model, kModelHelp)->required()->check(kNotEmpty);
  const auto model_option = [&](CLI::App* of, bool required) {
    of->add_option("MODEL", arguments.model, kModelHelp)->required(required)->check(kNotEmpty);
  };
  const auto layer_option = [&](CLI::App* of) {
    of->add_option("LAYER", arguments.layer,
                   "A number (layer_N.pt), non_layer, or a file's path in the model")
        ->check(kNotEmpty);
  };
  CLI::App* warm =
      command("warm", "Fetch a model's files, or some layers, before anyone reads them");
  model_option(warm, true);
  warm->add_option("LAYERS", arguments.layer,
                   "0-3,7,non_layer, or all for every layer_N.pt (default: the origin's files)")
      ->check(kNotEmpty);
  warm->add_flag("--wait", arguments.wait, "Return when they are here; Ctrl-C ends the fetch");
  CLI::App* pin = command("pin", "Never evict a model or a layer, also what is still to come");
  model_option(pin, true);
  layer_option(pin);
  CLI::App* unpin = command("unpin", "Undo a pin; of a model: all its pins");
  model_option(unpin, true);
  layer_option(unpin);
  CLI::App* invalidate = command("invalidate", "Drop cached bytes; pins stay");
  model_option(invalidate, false);
  layer_option(invalidate);
  invalidate->add_flag("--all", arguments.all, "Of every model");
  CLI::App* clear = command("clear", "Drop everything: bytes, pins, listings");
  CLI::App* verify = command("verify", "Hash what is cached again; drop what is corrupt");
  model_option(verify, false);
  verify->add_flag("--origin", arguments.origin, "Also compare with the hub's digests");
  CLI::App* migrate =
      command("migrate", "Move what is hot to faster zones and what is cold to slower ones, now");
  CLI::App* optimize = command(
      "optimize", "verify, then even out the zones, remove orphans and compact the catalog");
  CLI::App* flush = command("flush", "Return when everything cached is durable");
  CLI::App* live = app.add_subcommand("top", "A live view");
  live->add_flag("--once", arguments.once, "One view, then end");
  std::string action;
  CLI::App* plan = command("plan", "The order of layers that read-ahead replays for a model");
  plan->add_option("ACTION", action, "record, show or drop")
      ->required()
      ->check(CLI::IsMember({"record", "show", "drop"}));
  plan->add_option("MODEL", arguments.model, kModelHelp)->required()->check(kNotEmpty);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (app.get_subcommands().empty()) return app.exit(CLI::RequiredError("A command"));

  if (*status) {
    return show(ask(arguments, Json{{"command", "status"}}, kAnswerWait), arguments.json,
                render_status);
  }
  if (*config) {
    return show(ask(arguments, Json{{"command", "config"}}, kAnswerWait), arguments.json,
                render_config);
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
  if (*live) return top(arguments);
  for (CLI::App* one : {warm, pin, unpin, invalidate, clear, verify, migrate, optimize, flush}) {
    if (*one) return change(arguments, one->get_name());
  }
  return show(ask(arguments, Json{{"command", "refresh"}}, kRefreshWait), arguments.json,
              [&](const Json& commits) { return render_refresh(arguments.model, commits); });
}

}  // namespace
}  // namespace nexus::tools

int main(int argc, char** argv) {
  return nexus::tools::run(argc, argv);
}
