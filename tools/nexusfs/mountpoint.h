// The directory that is about to be mounted on.
#pragma once

#include <string>

#include "backend/base/error.h"
#include "tools/common/config.h"

namespace nexus::tools {

// Makes `path` ready and returns it in canonical form: a missing directory is made where its parent
// is there and writable, the mount of a dead daemon is detached. kInvalid when a living one serves
// there.
Result<std::string> prepare_mountpoint(const std::string& path, const Environment& environment);

// Nothing that the daemon itself uses may lie below its mountpoint: it would wait for itself.
Result<void> check_outside(const std::string& mountpoint, const Config& config);

// Whether a stat and a statfs of the mount's root are answered by a FUSE file system.
Result<void> mount_answers(const std::string& mountpoint);

}  // namespace nexus::tools
