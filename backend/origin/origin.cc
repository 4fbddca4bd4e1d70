#include "backend/origin/origin.h"

#include <algorithm>
#include <set>

namespace nexus {

namespace {

constexpr size_t kComponentBytesMax = 255;
constexpr size_t kPathBytesMax = 4096;
constexpr size_t kRepoBytesMax = 96 * 2 + 1;
constexpr size_t kComplaintsMax = 100;  // what a hostile listing can put into a log

bool valid_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const int more = lead < 0x80                   ? 0
                     : lead >= 0xC2 && lead < 0xE0 ? 1
                     : (lead & 0xF0) == 0xE0       ? 2
                     : lead >= 0xF0 && lead < 0xF5 ? 3
                                                   : -1;
    if (more < 0 || i + static_cast<size_t>(more) >= text.size() + (more == 0 ? 1 : 0))
      return false;
    uint32_t point = more == 0 ? lead : lead & (0x3Fu >> more);
    for (int k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + static_cast<size_t>(k)]);
      if ((next & 0xC0) != 0x80) return false;
      point = point << 6 | (next & 0x3F);
    }
    const bool overlong = (more == 2 && point < 0x800) || (more == 3 && point < 0x10000);
    const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
    const bool control = point < 0x20 || (point >= 0x7F && point < 0xA0);
    if (overlong || surrogate || control || point > 0x10FFFF) return false;
    i += static_cast<size_t>(more) + 1;
  }
  return true;
}

// For a message: what would disturb a terminal or a log line becomes '?'.
std::string shown_name(const std::string& name) {
  std::string shown = name.substr(0, 120);
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7F) c = '?';
  }
  return "'" + shown + (name.size() > 120 ? "...'" : "'");
}

}  // namespace

bool valid_model_path(const std::string& path) {
  if (path.empty() || path.size() > kPathBytesMax || !valid_utf8(path)) return false;
  for (size_t start = 0; start <= path.size();) {
    size_t end = path.find('/', start);
    if (end == std::string::npos) end = path.size();
    const size_t length = end - start;
    if (length == 0 || length > kComponentBytesMax) return false;
    const auto component = std::string_view(path).substr(start, length);
    if (component == "." || component == "..") return false;
    start = end + 1;
  }
  return true;
}

void sanitize_files(Snapshot& snapshot) {
  auto complain = [&snapshot](const std::string& name, const char* why) {
    if (snapshot.complaints.size() < kComplaintsMax) {
      snapshot.complaints.push_back(shown_name(name) + ": " + why);
    }
  };
  auto& files = snapshot.files;
  std::stable_sort(files.begin(), files.end(),
                   [](const auto& a, const auto& b) { return a.path < b.path; });
  std::vector<OriginFile> kept;
  kept.reserve(files.size());
  for (auto& file : files) {
    if (!valid_model_path(file.path)) {
      complain(file.path, "not a name that a file inside a model may have");
    } else if (!kept.empty() && kept.back().path == file.path) {
      complain(file.path, "listed twice; the first is used");
    } else {
      kept.push_back(std::move(file));
    }
  }
  // The file wins, as it came first in the listing's order and loaders ask for files.
  std::set<std::string> names;
  for (const auto& file : kept) names.insert(file.path);
  std::erase_if(kept, [&](const OriginFile& file) {
    for (size_t at = file.path.find('/'); at != std::string::npos;
         at = file.path.find('/', at + 1)) {
      if (!names.contains(file.path.substr(0, at))) continue;
      complain(file.path, "lies below a name that is a file");
      return true;
    }
    return false;
  });
  files = std::move(kept);
}

bool valid_repo_name(const std::string& repo) {
  if (repo.empty() || repo.size() > kRepoBytesMax) return false;
  if (std::count(repo.begin(), repo.end(), '/') > 1) return false;
  for (size_t start = 0; start <= repo.size();) {
    size_t end = repo.find('/', start);
    if (end == std::string::npos) end = repo.size();
    const auto part = std::string_view(repo).substr(start, end - start);
    if (part.empty() || part.size() > 96) return false;
    const bool plain = std::all_of(part.begin(), part.end(), [](char c) {
      return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
             c == '.' || c == '_' || c == '-';
    });
    const auto edge = [](char c) { return c == '-' || c == '.'; };
    if (!plain || edge(part.front()) || edge(part.back())) return false;
    if (part.find("--") != std::string_view::npos || part.find("..") != std::string_view::npos) {
      return false;
    }
    start = end + 1;
  }
  return true;
}

}  // namespace nexus
