// nexusfs: mounts models as directories, and unmounts them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "fs/fuse_api.h"
#include "tools/nexusfs/guard.h"
#include "tools/nexusfs/mount_command.h"
#include "tools/nexusfs/unmount_command.h"

namespace nexus::tools {
namespace {

constexpr const char* kSizeHelp = " (bytes, or with K M G T, KiB MiB GiB TiB)";

void add_mount_options(CLI::App& mount, MountArguments& arguments) {
  ConfigFlags& flags = arguments.flags;
  mount
      .add_option("MOUNTPOINT", arguments.mountpoint,
                  "Where to mount; made if its parent directory is there and writable")
      ->required();
  mount.add_option(
      "--config", flags.config_file,
      "Config file (default: ~/.config/nexus/config.toml, else /etc/nexus/config.toml)");
  mount.add_option("--endpoint", flags.endpoint,
                   "Hub to load models from (default: $HF_ENDPOINT, else the public one)");
  // One value each: a list would swallow the mountpoint behind it.
  const auto alias = [&](const char* name, std::vector<std::string>& into, const char* help) {
    mount.add_option(name, into, help)->allow_extra_args(false);
  };
  alias("--base-url", flags.base_urls,
        "ALIAS=URL: layers that lie split at URL/layer_0.pt, layer_1.pt, ...");
  alias("--local", flags.locals,
        "ALIAS=DIR: a model in a local directory, served from where it lies");
  alias("--model", flags.models, "ALIAS=ORG/NAME[@REV]: a short name for a model of the hub");
  mount.add_option("--hub-cache", flags.hub_cache,
                   "A huggingface_hub cache directory, read before the network");
  mount.add_option("--cache-dir", flags.cache_dir,
                   "Where fetched bytes are kept (default: ~/.cache/nexus/layers)");
  mount.add_option("--ram", flags.ram, std::string("SIZE of the memory cache") + kSizeHelp);
  mount.add_option("--disk", flags.disk, std::string("SIZE of the disk cache") + kSizeHelp);
  mount.add_option("--token-file", flags.token_file,
                   "File with the hub's token (default: HF_TOKEN and its files)");
  mount.add_option("--integrity", flags.integrity,
                   "default, or strict: nothing is served before its file's SHA-256 is checked");
  mount.add_flag("--offline", flags.offline, "Never use the network: serve what is cached");
  mount.add_flag("--allow-other", flags.allow_other, "Let other users read the mount");
  mount.add_flag("--fuse-io-uring", flags.fuse_io_uring,
                 "Take the kernel's requests by FUSE over io_uring, if the kernel has it on");
  mount.add_flag("--foreground", arguments.foreground, "Stay, show progress; Ctrl-C unmounts");
  mount.add_option("--log-file", flags.log_file,
                   "Log here (default: <cache-dir>/nexusfs.log; standard error in the foreground)");
}

int run(int argc, char** argv) {
  CLI::App app(
      "Shows machine-learning models as directories; files are fetched when they are read.",
      "nexusfs");
  app.set_version_flag(
      "--version", std::string("nexusfs " NEXUS_VERSION " (libfuse ") + fuse_pkgversion() + ")");
  app.require_subcommand(1);
  MountArguments arguments;
  CLI::App* mount = app.add_subcommand("mount", "Mount; returns once the mount answers");
  add_mount_options(*mount, arguments);
  CLI::App* unmount_app = app.add_subcommand(
      "unmount", "Unmount, also while files are in use; returns once the daemon has ended");
  std::string mountpoint;
  unmount_app->add_option("MOUNTPOINT", mountpoint, "Where it is mounted")->required();
  CLI::App* guard = app.add_subcommand("guard", "For nexusfs itself")->group("");
  pid_t guarded = 0;
  guard->add_option("PARENT", guarded)->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (*guard) return guard_command(guarded);
  if (*mount) return mount_command(arguments);
  if (auto done = unmount(mountpoint); !done) {
    std::fprintf(stderr, "nexusfs: %s\n", done.error().what.c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace nexus::tools

int main(int argc, char** argv) {
  return nexus::tools::run(argc, argv);
}
