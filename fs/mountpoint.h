// The directory to mount on: whether it will do, and what a dead daemon left on it.
#pragma once

#include <string>

#include "backend/base/error.h"

namespace nexus::fs {

// The absolute path, ready to mount on. Recovers the mountpoint of a dead daemon. kInvalid, in
// words for the user: missing, no directory, not empty, a NexusFS that is alive.
Result<std::string> prepare_mountpoint(const std::string& path);

// Takes a mount away even when it is busy or its daemon is dead; works for root and, through
// fusermount3, for others.
Result<void> detach_mount(const std::string& mountpoint);

}  // namespace nexus::fs
