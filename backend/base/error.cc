#include "backend/base/error.h"

namespace nexus {

const char* code_name(Code code) {
  switch (code) {
    case Code::kNotFound:
      return "not found";
    case Code::kAccess:
      return "access denied";
    case Code::kOffline:
      return "offline";
    case Code::kOrigin:
      return "origin";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kInvalid:
      return "invalid";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kCancelled:
      return "cancelled";
    case Code::kNoSpace:
      return "no space";
    case Code::kDisk:
      return "disk";
    case Code::kStale:
      return "stale";
    case Code::kLimit:
      return "limit";
  }
  return "unknown";
}

}  // namespace nexus
