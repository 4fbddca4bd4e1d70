// `nexusfs mount MOUNTPOINT`: checks everything it was told, leaves the terminal, mounts and
// serves.
#pragma once

#include <string>

#include "tools/common/config.h"

namespace nexus::tools {

struct MountArguments {
  std::string mountpoint;
  ConfigFlags flags;
  bool foreground = false;
};

// The exit status. Prints to standard error what went wrong.
int mount_command(const MountArguments& arguments);

}  // namespace nexus::tools
