// The hub's JSON, read as a stream: a listing of any size and any depth costs memory only for the
// files in it, and those are counted.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "backend/origin/hub.h"

namespace nexus {

namespace {

constexpr int kDepthMax = 32;
constexpr size_t kFilesMax = 200'000;   // of one model
constexpr size_t kTextBytesMax = 8192;  // of a value that is kept; a path is at most 4096
constexpr uint64_t kSizeMax = INT64_MAX;

bool hex_digest(const std::string& text, size_t digits) {
  return text.size() == digits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// A commit goes into URLs and into names of local directories.
bool usable_commit(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

// "2024-01-31T12:34:56.000Z"; 0 for anything else.
int64_t parse_time(const std::string& text) {
  int year = 0, hour = 0, minute = 0, second = 0;
  unsigned month = 0, day = 0;
  if (std::sscanf(text.c_str(), "%4d-%2u-%2uT%2d:%2d:%2d", &year, &month, &day, &hour, &minute,
                  &second) != 6) {
    return 0;
  }
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day)};
  if (!date.ok() || year < 1970) return 0;
  const auto days = std::chrono::sys_days(date).time_since_epoch();
  return std::chrono::seconds(days).count() + hour * 3600 + minute * 60 + second;
}

struct Size {
  bool seen = false;
  bool sane = false;
  uint64_t bytes = 0;
};

struct Entry {
  std::string path;
  std::string type;  // tree only: "file", "directory"
  std::string oid;
  std::string lfs_digest;
  bool lfs = false;
  Size size;
  Size lfs_size;
};

// Both answers are lists of entries {path or rfilename, size, oid or blobId, lfs {..}}; a model's
// lies under "siblings" of an object, a tree's is the document itself.
class ListingReader {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  explicit ListingReader(bool model) : model_(model), entry_depth_(model ? 3 : 2) {}

  bool null() { return true; }
  bool boolean(bool value) {
    if (model_ && depth_ == 1 && value && (key_ == "private" || key_ == "gated")) restricted = true;
    return true;
  }
  bool number_integer(number_integer_t) { return take_size(0, false); }
  bool number_unsigned(number_unsigned_t value) { return take_size(value, value <= kSizeMax); }
  bool number_float(number_float_t, const string_t&) { return take_size(0, false); }
  bool string(string_t& value) {
    if (value.size() > kTextBytesMax) {
      if (in_entry() && (key_ == "path" || key_ == "rfilename")) too_long_ = true;
      return true;
    }
    if (model_ && depth_ == 1) {
      if (key_ == "sha") sha = value;
      if (key_ == "id" || (key_ == "modelId" && id.empty())) id = value;
      if (key_ == "lastModified") modified = value;
      if (key_ == "gated") restricted = true;  // "auto", "manual"
    } else if (in_entry()) {
      if (key_ == (model_ ? "rfilename" : "path")) entry_.path = value;
      if (key_ == "type") entry_.type = value;
      if (key_ == (model_ ? "blobId" : "oid")) entry_.oid = value;
    } else if (in_lfs() && (key_ == "sha256" || key_ == "oid")) {
      entry_.lfs_digest = value;
    }
    return true;
  }
  bool binary(binary_t&) { return true; }
  bool key(string_t& value) {
    if (value.size() <= 64) {
      key_ = value;
    } else {
      key_.clear();
    }
    if (model_ && depth_ == 1) in_siblings_ = key_ == "siblings";
    if (in_entry_depth()) in_lfs_ = key_ == "lfs";
    return true;
  }
  bool start_object(size_t) {
    if (++depth_ > kDepthMax) return refuse("nested too deeply");
    if (depth_ == 1 && !model_) return refuse("not a list");
    if (depth_ == entry_depth_ && listing()) {
      entry_ = Entry{};
      entry_open_ = true;
      too_long_ = false;
      in_lfs_ = false;
    }
    if (entry_open_ && depth_ == entry_depth_ + 1 && in_lfs_) entry_.lfs = true;
    key_.clear();
    return true;
  }
  bool end_object() {
    if (entry_open_ && depth_ == entry_depth_) {
      entry_open_ = false;
      if (entries.size() >= kFilesMax) return refuse("more than 200,000 files");
      if (!too_long_ && (model_ || entry_.type.empty() || entry_.type == "file")) {
        entries.push_back(std::move(entry_));
      }
    }
    return close();
  }
  bool start_array(size_t) {
    if (++depth_ > kDepthMax) return refuse("nested too deeply");
    if (depth_ == 1 && model_) return refuse("not an object");
    if (depth_ == entry_depth_ - 1 && listing()) listed = true;
    key_.clear();
    return true;
  }
  bool end_array() { return close(); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    // Not the parser's own message: that quotes the input.
    return refuse("not JSON at byte " + std::to_string(position));
  }

  std::string sha, id, modified, why;
  bool restricted = false;
  bool listed = false;
  std::vector<Entry> entries;

 private:
  bool listing() const { return !model_ || in_siblings_; }
  bool in_entry_depth() const { return entry_open_ && depth_ == entry_depth_; }
  bool in_entry() const { return in_entry_depth(); }
  bool in_lfs() const { return entry_open_ && in_lfs_ && depth_ == entry_depth_ + 1; }
  bool take_size(uint64_t value, bool sane) {
    if (key_ != "size") return true;
    if (in_entry()) entry_.size = Size{true, sane, value};
    if (in_lfs()) entry_.lfs_size = Size{true, sane, value};
    return true;
  }
  bool close() {
    --depth_;
    key_.clear();  // the next value at this depth has a key of its own
    return true;
  }
  bool refuse(std::string reason) {
    if (why.empty()) why = std::move(reason);
    return false;
  }

  const bool model_;
  const int entry_depth_;
  int depth_ = 0;
  bool in_siblings_ = false;
  bool entry_open_ = false;
  bool in_lfs_ = false;
  bool too_long_ = false;
  std::string key_;
  Entry entry_;
};

Result<void> read_json(std::string_view json, ListingReader& reader) {
  try {
    if (nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) return {};
  } catch (const std::exception&) {
    return fail(Code::kOrigin, "the listing is not JSON");
  }
  return fail(Code::kOrigin, "the listing is " + (reader.why.empty() ? "not JSON" : reader.why));
}

// Appends what makes sense. Returns whether every entry had a size.
bool take_entries(std::vector<Entry>& entries, Snapshot& snapshot) {
  bool complete = true;
  for (auto& entry : entries) {
    OriginFile file;
    file.path = std::move(entry.path);
    const Size& size = entry.size.seen ? entry.size : entry.lfs_size;
    const char* why = nullptr;
    if (!size.seen) {
      complete = false;
    } else if (!size.sane || (entry.lfs_size.seen && !entry.lfs_size.sane)) {
      why = "its size in the listing is not a size";
    } else if (entry.lfs_size.seen && entry.lfs_size.bytes != size.bytes) {
      why = "the listing gives it two sizes";
    }
    if (why == nullptr && size.bytes > kFileBytesMax) why = "its size in the listing is absurd";
    if (why != nullptr) {
      if (snapshot.complaints.size() < 100) {
        const bool shown = valid_model_path(file.path);
        snapshot.complaints.push_back((shown ? "'" + file.path + "'" : "a file") + ": " + why);
      }
      file.error = file.path + ": " + why;
      snapshot.files.push_back(std::move(file));
      continue;
    }
    file.size = size.bytes;
    if (entry.lfs && hex_digest(entry.lfs_digest, 64)) {
      file.sha256 = entry.lfs_digest;
      file.etag = entry.lfs_digest;
    } else if (!entry.lfs && (hex_digest(entry.oid, 40) || hex_digest(entry.oid, 64))) {
      file.etag = entry.oid;
    }
    snapshot.files.push_back(std::move(file));
  }
  return complete;
}

}  // namespace

Result<ModelInfo> parse_model(std::string_view json, const std::string& repo,
                              const std::string& revision) {
  ListingReader reader(true);
  if (auto read = read_json(json, reader); !read) return tl::unexpected(read.error());
  if (!usable_commit(reader.sha)) return fail(Code::kOrigin, "the listing names no commit");
  ModelInfo info;
  Snapshot& snapshot = info.snapshot;
  snapshot.repo = valid_repo_name(reader.id) ? reader.id : repo;
  snapshot.revision = revision;
  snapshot.commit = reader.sha;
  snapshot.restricted = reader.restricted;
  snapshot.mtime_s = parse_time(reader.modified);
  info.complete = take_entries(reader.entries, snapshot) && reader.listed;
  return info;
}

Result<Snapshot> parse_model_info(std::string_view json, const std::string& repo,
                                  const std::string& revision) {
  auto info = parse_model(json, repo, revision);
  if (!info) return tl::unexpected(info.error());
  return std::move(info->snapshot);
}

Result<void> parse_tree_page(std::string_view json, Snapshot& snapshot) {
  ListingReader reader(false);
  if (auto read = read_json(json, reader); !read) return read;
  if (snapshot.files.size() + reader.entries.size() > kFilesMax) {
    return fail(Code::kOrigin, "the listing is more than 200,000 files");
  }
  for (auto& entry : reader.entries) {
    // A tree without sizes has nothing behind it to ask: such a file cannot be shown.
    if (!entry.size.seen && !entry.lfs_size.seen) entry.size = Size{true, false, 0};
  }
  take_entries(reader.entries, snapshot);
  return {};
}

// RFC 8288: <target>; param; param="value, with commas", <target>...
std::string next_page(std::string_view header) {
  size_t at = 0;
  while ((at = header.find('<', at)) != std::string_view::npos) {
    const size_t close = header.find('>', at);
    if (close == std::string_view::npos) return "";
    const std::string_view target = header.substr(at + 1, close - at - 1);
    bool quoted = false;
    size_t end = close + 1;
    for (; end < header.size() && (quoted || header[end] != ','); ++end) {
      if (header[end] == '"') quoted = !quoted;
    }
    std::string_view params = header.substr(close + 1, end - close - 1);
    while (!params.empty()) {
      params.remove_prefix(1);  // the ';', or a blank
      const size_t stop = std::min(params.find(';'), params.size());
      std::string param;
      for (const char c : params.substr(0, stop)) {
        if (c != ' ' && c != '\t' && c != '"') param += c;
      }
      if (param == "rel=next") return std::string(target);
      params.remove_prefix(stop);
    }
    at = end;
  }
  return "";
}

}  // namespace nexus
