// A local directory holding a model. Its files are served from where they lie, never copied;
// symlinks are followed. The commit is a digest of names, sizes and mtimes.
#pragma once

#include <memory>
#include <string>

#include "backend/base/executor.h"
#include "backend/origin/origin.h"

namespace nexus {

// Reads run on `pool`, which outlives the origin.
std::shared_ptr<Origin> make_local_origin(std::string directory, ThreadPool& pool);

}  // namespace nexus
