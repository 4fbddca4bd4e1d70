// The digests by which a hub names content.
#pragma once

#include <functional>
#include <string>

#include "backend/store/object_file.h"

namespace nexus {

bool is_git_oid(const std::string& etag);

// The hub names an LFS file by the SHA-256 of its bytes, any other by git's blob id: SHA-1 over
// "blob <size>\0" and the bytes. Reads the whole file; kCancelled once `stop` says so.
Result<std::string> digest_of(const ObjectFile& file, bool git, const std::function<bool()>& stop);

}  // namespace nexus
