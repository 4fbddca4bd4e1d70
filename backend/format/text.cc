#include "backend/format/text.h"

#include <cstddef>
#include <cstdint>

namespace nexus {
namespace {

constexpr size_t kQuotedMax = 120;

bool is_continuation(char c) {
  return (static_cast<uint8_t>(c) & 0xC0) == 0x80;
}

// Length of the UTF-8 character at the start of `text`, 0 if there is none.
size_t utf8_character(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return 1;
  size_t length = 0;
  if (first >= 0xC2 && first <= 0xDF) length = 2;
  if (first >= 0xE0 && first <= 0xEF) length = 3;
  if (first >= 0xF0 && first <= 0xF4) length = 4;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  const auto second = static_cast<uint8_t>(text[1]);
  if (first == 0xE0 && second < 0xA0) return 0;   // overlong
  if (first == 0xED && second >= 0xA0) return 0;  // surrogate
  if (first == 0xF0 && second < 0x90) return 0;   // overlong
  if (first == 0xF4 && second >= 0x90) return 0;  // above U+10FFFF
  return length;
}

}  // namespace

std::string in_quotes(std::string_view name) {
  std::string out = "\"";
  size_t at = 0;
  while (at < name.size()) {
    const size_t length = utf8_character(name.substr(at));
    if (at + length > kQuotedMax) break;
    const auto first = static_cast<uint8_t>(name[at]);
    if (length == 0 || first < 0x20 || first == 0x7F) {
      out += '?';
      ++at;
    } else {
      out += name.substr(at, length);
      at += length;
    }
    if (at >= kQuotedMax) break;
  }
  if (at < name.size()) out += "...";
  return out + "\"";
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_character(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace nexus
