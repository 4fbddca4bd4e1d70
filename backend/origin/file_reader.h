// Reading [offset, offset + length) of a local file into a ReadRequest's sink, on a pool: the body
// of the local origin's read(), and of every read of a file with local_path.
#pragma once

#include <sys/stat.h>  // struct stat

#include <memory>
#include <string>

#include "backend/base/executor.h"
#include "backend/origin/origin.h"

namespace nexus {

// What local files have for an ETag: "stat:" and size, mtime, inode. A file whose etag begins so is
// checked before it is read, and fails with kStale when it changed; so does one whose size is not
// file.size.
std::string local_etag(const struct stat& info);

// `pool` outlives the transfer.
std::shared_ptr<Transfer> read_local_file(ReadRequest request, ThreadPool& pool);

}  // namespace nexus
