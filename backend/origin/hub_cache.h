// A huggingface_hub cache directory, read-only:
// models--org--name/{refs/<rev>, blobs/<etag>, snapshots/<commit>/<file> -> ../../blobs/<etag>}.
// Plain blocking file calls: run them where a slow disk does no harm.
#pragma once

#include <string>

#include "backend/origin/origin.h"

namespace nexus {

// Gives local_path to the files that lie under snapshots/<commit>/ with the right size.
void attach_hub_cache(const std::string& hub_cache, Snapshot& snapshot);

// What the cache holds of `repo` at `revision` (a ref or a commit). kNotFound when it holds
// nothing.
Result<Snapshot> load_hub_cache(const std::string& hub_cache, const std::string& repo,
                                const std::string& revision);

// Whether everybody may search every directory on the way to `path`, and read it.
bool readable_by_all(const std::string& path);

}  // namespace nexus
