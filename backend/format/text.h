// Names out of hostile files, on their way into messages and new files. Pure functions, any thread.
#pragma once

#include <string>
#include <string_view>

namespace nexus {

// `name` in quotes for a message: at most 120 bytes of it, control characters and bytes that are
// not UTF-8 replaced by '?', so that a log line stays one line.
std::string in_quotes(std::string_view name);

// As RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

}  // namespace nexus
