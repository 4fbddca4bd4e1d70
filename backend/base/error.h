// Errors as values. A failed call returns what went wrong and where; errno is chosen in fs/ alone.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace nexus {

enum class Code {
  kNotFound,     // no such model, revision, file
  kAccess,       // gated or private, and the token does not open it
  kOffline,      // the origin is out of reach, or --offline, and the bytes are not here
  kOrigin,       // the origin answered, but not with what was asked for
  kCorrupt,      // bytes or a header are not what they must be
  kInvalid,      // the caller's argument makes no sense
  kUnsupported,  // a format or feature that this build does not read
  kCancelled,    // the caller went away, or the mount is closing
  kNoSpace,      // the cache disk is full
  kDisk,         // the cache disk failed
  kStale,        // the origin's content changed underneath an open handle
  kLimit,        // a limit of this daemon was reached (per-uid, header bytes, ...)
};

// `what` reads from the outside in, for example
// "fetch org/m/model.safetensors [0, 1048576): 127.0.0.1: connection refused".
// It never holds a token or a signed query (see net/redact.h).
struct Error {
  Code code;
  std::string what;
};

template <typename T>
using Result = tl::expected<T, Error>;

inline tl::unexpected<Error> fail(Code code, std::string what) {
  return tl::unexpected<Error>(Error{code, std::move(what)});
}

// The same error seen from one level further out: "context: what".
inline tl::unexpected<Error> fail(const Error& inner, const std::string& context) {
  return tl::unexpected<Error>(Error{inner.code, context + ": " + inner.what});
}

const char* code_name(Code code);

}  // namespace nexus
