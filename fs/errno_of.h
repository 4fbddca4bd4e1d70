// The one place where an Error becomes an errno.
#pragma once

#include <cerrno>

#include "backend/base/error.h"

namespace nexus::fs {

// kStale is met on open handles only: a path that went stale is looked up again and gives what is
// there now. kCancelled means that the reader was interrupted; a closing mount answers EIO itself.
inline int errno_of(Code code) {
  switch (code) {
    case Code::kNotFound:
      return ENOENT;
    case Code::kAccess:
      return EACCES;
    case Code::kOffline:
    case Code::kOrigin:
    case Code::kCorrupt:
    case Code::kNoSpace:
    case Code::kDisk:
      return EIO;
    case Code::kInvalid:
      return EINVAL;
    case Code::kUnsupported:
      return ENOTSUP;
    case Code::kCancelled:
      return EINTR;
    case Code::kStale:
      return ESTALE;
    case Code::kLimit:
      return EAGAIN;
  }
  return EIO;
}

inline int errno_of(const Error& error) {
  return errno_of(error.code);
}

}  // namespace nexus::fs
