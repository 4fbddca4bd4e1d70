// Sizes, rates and times as people write and read them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "backend/base/error.h"

namespace nexus::tools {

// A SIZE: plain bytes, K M G T (10^3 .. 10^12, also KB MB GB TB) or KiB MiB GiB TiB (2^10 .. 2^40),
// optionally with a decimal fraction ("1.5G"; a part of a byte is dropped). Anything else, and what
// is over 2^63 - 1, is kInvalid.
Result<uint64_t> parse_size(std::string_view text);

// "90s", "10m", "12h", "7d"; "off" is 0. A whole number, at most ten years; anything else is
// kInvalid.
Result<std::chrono::seconds> parse_interval(std::string_view text);
std::string format_interval(std::chrono::seconds interval);  // as parse_interval() reads it

std::string format_size(uint64_t bytes);        // "1.50 GB", decimal units
std::string format_rate(double bytes_per_s);    // "112 MB/s"
std::string format_duration(uint64_t seconds);  // "3 d 4 h", "2 h 5 min", "1 min 3 s", "42 s"
// Control characters become '?', so that a name cannot drive the terminal it is shown on.
std::string printable(std::string_view text);

}  // namespace nexus::tools
