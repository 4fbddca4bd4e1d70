#include "tools/common/mount_table.h"

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>

namespace nexus::tools {
namespace {

std::optional<std::string> real_path(const std::string& path) {
  std::unique_ptr<char, decltype(&std::free)> resolved(realpath(path.c_str(), nullptr), &std::free);
  if (!resolved) return std::nullopt;
  return std::string(resolved.get());
}

// The kernel writes space, tab, newline and backslash as three octal digits.
std::string unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto octal = [&](size_t at) {
      return at < text.size() && text[at] >= '0' && text[at] <= '7';
    };
    if (text[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t end = line.find(' ');
    words.push_back(line.substr(0, end));
    line = end == std::string_view::npos ? std::string_view() : line.substr(end + 1);
  }
  return words;
}

}  // namespace

std::vector<MountEntry> parse_mountinfo(std::string_view text) {
  // "36 35 98:0 /root /mount/point rw,noatime optional:1 - type source options" (proc(5)).
  std::vector<MountEntry> entries;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::vector<std::string_view> words = words_of(text.substr(0, newline));
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    size_t separator = 6;
    while (separator < words.size() && words[separator] != "-") ++separator;
    if (separator + 2 >= words.size()) continue;
    entries.push_back({std::string(words[2]), unescaped(words[4]), unescaped(words[separator + 1]),
                       unescaped(words[separator + 2])});
  }
  return entries;
}

std::vector<MountEntry> mount_table() {
  std::ifstream in("/proc/self/mountinfo");
  return parse_mountinfo(std::string(std::istreambuf_iterator<char>(in), {}));
}

std::optional<MountEntry> find_mount(const std::string& mountpoint) {
  std::optional<MountEntry> top;
  for (const MountEntry& entry : mount_table()) {
    if (entry.mountpoint == mountpoint) top = entry;
  }
  return top;
}

Result<std::string> canonical_mountpoint(const std::string& path) {
  const auto bad = [&](int error) {
    return fail(Code::kInvalid, path + ": " + std::strerror(error));
  };
  if (path.empty()) return fail(Code::kInvalid, "the mountpoint must not be empty");
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
  const std::filesystem::path as_path(trimmed);
  const std::string name = as_path.filename().string();
  char target[PATH_MAX];
  // readlink() of a mounted directory fails without asking its file system.
  const bool is_link = readlink(trimmed.c_str(), target, sizeof target) >= 0;
  if (is_link || name.empty() || name == "." || name == "..") {
    auto resolved = real_path(trimmed);
    if (!resolved) return bad(errno);
    return *resolved;
  }
  const std::string parent = as_path.has_parent_path() ? as_path.parent_path().string() : ".";
  auto resolved = real_path(parent);
  if (!resolved) return bad(errno);
  return *resolved == "/" ? "/" + name : *resolved + "/" + name;
}

}  // namespace nexus::tools
