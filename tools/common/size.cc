#include "tools/common/size.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <utility>

namespace nexus::tools {
namespace {

struct Unit {
  std::string_view suffix;
  uint64_t bytes;
};

constexpr std::array<Unit, 13> kUnits = {{{"", 1},
                                          {"K", 1'000},
                                          {"M", 1'000'000},
                                          {"G", 1'000'000'000},
                                          {"T", 1'000'000'000'000},
                                          {"KB", 1'000},
                                          {"MB", 1'000'000},
                                          {"GB", 1'000'000'000},
                                          {"TB", 1'000'000'000'000},
                                          {"KiB", 1ull << 10},
                                          {"MiB", 1ull << 20},
                                          {"GiB", 1ull << 30},
                                          {"TiB", 1ull << 40}}};

// The largest first.
constexpr std::array<std::pair<char, uint64_t>, 4> kIntervalUnits = {
    {{'d', 86'400}, {'h', 3'600}, {'m', 60}, {'s', 1}}};

constexpr uint64_t kSizeMax = std::numeric_limits<int64_t>::max();  // what off_t holds
// 10^6 * 2^40 = 1.1 * 10^18 still fits 64 bits, so a fraction of six digits is exact.
constexpr size_t kFractionDigitsMax = 6;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view take_digits(std::string_view& text) {
  size_t count = 0;
  while (count < text.size() && is_digit(text[count])) ++count;
  const std::string_view digits = text.substr(0, count);
  text.remove_prefix(count);
  return digits;
}

// Nothing when the number is over kSizeMax.
std::optional<uint64_t> to_number(std::string_view digits) {
  uint64_t value = 0;
  for (char c : digits) {
    const uint64_t digit = static_cast<uint64_t>(c - '0');
    if (value > (kSizeMax - digit) / 10) return std::nullopt;
    value = value * 10 + digit;
  }
  return value;
}

std::string in_unit(double value, const char* unit) {
  char text[48];
  const int digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  std::snprintf(text, sizeof text, "%.*f %s", digits, value, unit);
  return text;
}

std::string scaled(double value, const char* suffix) {
  static constexpr std::array<const char*, 5> kNames = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kNames.size()) {
    value /= 1000;
    ++unit;
  }
  const std::string name = std::string(kNames[unit]) + suffix;
  if (unit == 0) return std::to_string(static_cast<uint64_t>(value)) + " " + name;
  return in_unit(value, name.c_str());
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  const std::string quoted = "size '" + printable(text) + "'";
  std::string_view rest = text;
  const std::string_view whole_digits = take_digits(rest);
  std::string_view fraction_digits;
  bool well_formed = !whole_digits.empty();
  if (well_formed && !rest.empty() && rest.front() == '.') {
    rest.remove_prefix(1);
    fraction_digits = take_digits(rest);
    well_formed = !fraction_digits.empty() && fraction_digits.size() <= kFractionDigitsMax;
  }
  const Unit* unit = nullptr;
  for (const Unit& candidate : kUnits) {
    if (candidate.suffix == rest) unit = &candidate;
  }
  if (unit && unit->bytes == 1 && !fraction_digits.empty()) well_formed = false;
  if (!well_formed || !unit) {
    return fail(
        Code::kInvalid,
        quoted + ": use bytes, or a number with K, M, G, T, KiB, MiB, GiB or TiB (50G, 1.5GiB)");
  }

  const std::optional<uint64_t> whole = to_number(whole_digits);
  if (!whole || *whole > kSizeMax / unit->bytes)
    return fail(Code::kInvalid, quoted + ": too large");
  uint64_t fraction = 0;
  if (!fraction_digits.empty()) {
    uint64_t divisor = 1;
    for (size_t i = 0; i < fraction_digits.size(); ++i) divisor *= 10;
    fraction = *to_number(fraction_digits) * unit->bytes / divisor;
  }
  const uint64_t bytes = *whole * unit->bytes;
  if (fraction > kSizeMax - bytes) return fail(Code::kInvalid, quoted + ": too large");
  return bytes + fraction;
}

Result<std::chrono::seconds> parse_interval(std::string_view text) {
  constexpr uint64_t kMost = 10ull * 366 * 86'400;
  if (text == "off") return std::chrono::seconds(0);
  const std::string quoted = "'" + printable(text) + "'";
  uint64_t unit = 0;
  for (const auto& [letter, seconds] : kIntervalUnits) {
    if (text.ends_with(letter)) unit = seconds;
  }
  const std::string_view digits = text.substr(0, text.empty() ? 0 : text.size() - 1);
  const bool number = !digits.empty() && std::all_of(digits.begin(), digits.end(), is_digit);
  const auto count = to_number(number ? digits : "0");
  if (unit == 0 || !number || count == 0) {
    return fail(Code::kInvalid, quoted + ": expected a time such as 90s, 10m, 12h, 7d, or off");
  }
  if (!count || *count > kMost / unit)
    return fail(Code::kInvalid, quoted + ": more than ten years");
  return std::chrono::seconds(*count * unit);
}

std::string format_interval(std::chrono::seconds interval) {
  if (interval.count() == 0) return "off";
  const auto seconds = static_cast<uint64_t>(interval.count());
  for (const auto& [letter, unit] : kIntervalUnits) {
    if (seconds % unit == 0) return std::to_string(seconds / unit) + letter;
  }
  return std::to_string(seconds) + "s";
}

std::string format_size(uint64_t bytes) {
  return scaled(static_cast<double>(bytes), "");
}

std::string format_rate(double bytes_per_s) {
  return scaled(std::isfinite(bytes_per_s) && bytes_per_s > 0 ? bytes_per_s : 0, "/s");
}

std::string format_duration(uint64_t seconds) {
  const uint64_t minutes = seconds / 60, hours = minutes / 60, days = hours / 24;
  if (days > 0) return std::to_string(days) + " d " + std::to_string(hours % 24) + " h";
  if (hours > 0) return std::to_string(hours) + " h " + std::to_string(minutes % 60) + " min";
  if (minutes > 0) return std::to_string(minutes) + " min " + std::to_string(seconds % 60) + " s";
  return std::to_string(seconds) + " s";
}

std::string printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

}  // namespace nexus::tools
