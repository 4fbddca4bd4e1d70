// `nexusfs unmount MOUNTPOINT`.
#pragma once

#include <string>

#include "backend/base/error.h"

namespace nexus::tools {

// Asks the daemon to stop and waits until its process has ended. A mount whose daemon is dead is
// detached. kNotFound when nothing of ours is mounted there.
Result<void> unmount(const std::string& mountpoint);

}  // namespace nexus::tools
