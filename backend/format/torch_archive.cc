#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>

#include "backend/format/little_endian.h"
#include "backend/format/text.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {
namespace {

constexpr std::string_view kCentralSignature = "PK\x01\x02";
constexpr std::string_view kEndSignature = "PK\x05\x06";
constexpr std::string_view kEnd64Signature = "PK\x06\x06";
constexpr std::string_view kLocator64Signature = "PK\x06\x07";

constexpr size_t kLocalHeaderBytes = 30;    // without name and extra field
constexpr size_t kCentralHeaderBytes = 46;  // without name, extra field and comment
constexpr size_t kEndBytes = 22;
constexpr size_t kLocatorBytes = 20;
constexpr size_t kEnd64Bytes = 56;
constexpr uint64_t kMax32 = 0xFFFF'FFFF;  // the value is in the zip64 extra field
constexpr uint16_t kZip64Extra = 0x0001;

constexpr uint64_t kEncryptedFlag = 1 << 0;
constexpr uint64_t kDescriptorFlag = 1 << 3;
constexpr uint64_t kTorchAlignment = 64;
// Behind a record's data: signature, CRC-32 and two sizes of 4 or (zip64) 8 bytes.
constexpr std::array<uint64_t, 2> kDescriptorBytes = {16, 24};

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Where the end record stands in `tail`: the last one whose comment reaches exactly to the end.
std::optional<size_t> find_end_record(std::string_view tail) {
  if (tail.size() < kEndBytes) return std::nullopt;
  for (size_t at = tail.rfind(kEndSignature, tail.size() - kEndBytes); at != std::string_view::npos;
       at = at == 0 ? std::string_view::npos : tail.rfind(kEndSignature, at - 1)) {
    if (at + kEndBytes + read_le(tail, at + 20, 2) == tail.size()) return at;
  }
  return std::nullopt;
}

struct DirectoryEnd {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t at = 0;  // of the end record that follows the directory
};

// The zip64 end record that the locator before the end record at `end` points to.
Result<DirectoryEnd> read_end64(std::string_view tail, size_t end, uint64_t tail_begin) {
  const size_t locator = end - kLocatorBytes;
  const uint64_t at = read_le(tail, locator + 8, 8);
  const uint64_t locator_at = tail_begin + locator;
  if (at < tail_begin || at > locator_at || locator_at - at < kEnd64Bytes) {
    return fail(Code::kCorrupt, "zip64 end record out of place");
  }
  const size_t in_tail = at - tail_begin;
  if (tail.substr(in_tail, 4) != kEnd64Signature) {
    return fail(Code::kCorrupt, "no zip64 end record at " + std::to_string(at));
  }
  if (read_le(tail, in_tail + 16, 4) != 0 || read_le(tail, in_tail + 20, 4) != 0) {
    return fail(Code::kUnsupported, "a zip archive of several disks");
  }
  return DirectoryEnd{read_le(tail, in_tail + 48, 8), read_le(tail, in_tail + 40, 8), at};
}

// A record as the central directory tells it.
struct Entry {
  ZipRecord record;
  bool has_descriptor = false;
};

// Sizes and offset of 0xFFFFFFFF stand in the zip64 extra field, in this order.
bool read_zip64(std::string_view extra, std::array<uint64_t*, 3> values) {
  if (std::none_of(values.begin(), values.end(), [](uint64_t* v) { return *v == kMax32; })) {
    return true;
  }
  while (extra.size() >= 4) {
    const uint64_t id = read_le(extra, 0, 2);
    const uint64_t length = read_le(extra, 2, 2);
    extra.remove_prefix(4);
    if (length > extra.size()) return false;
    std::string_view field = extra.substr(0, length);
    extra.remove_prefix(length);
    if (id != kZip64Extra) continue;
    for (uint64_t* value : values) {
      if (*value != kMax32) continue;
      if (field.size() < 8) return false;
      *value = read_le(field, 0, 8);
      field.remove_prefix(8);
    }
    return true;
  }
  return false;
}

// Takes one entry off the front of `rest`.
Result<Entry> take_entry(std::string_view& rest) {
  if (rest.size() < kCentralHeaderBytes || !rest.starts_with(kCentralSignature)) {
    return fail(Code::kCorrupt, "zip directory: not an entry");
  }
  const uint64_t flags = read_le(rest, 8, 2);
  const uint64_t method = read_le(rest, 10, 2);
  uint64_t stored_bytes = read_le(rest, 20, 4);
  uint64_t bytes = read_le(rest, 24, 4);
  const size_t name_bytes = read_le(rest, 28, 2);
  const size_t extra_bytes = read_le(rest, 30, 2);
  const size_t comment_bytes = read_le(rest, 32, 2);
  uint64_t local_header = read_le(rest, 42, 4);
  if (kCentralHeaderBytes + name_bytes + extra_bytes + comment_bytes > rest.size()) {
    return fail(Code::kCorrupt, "zip directory: an entry is cut off");
  }
  const std::string_view name = rest.substr(kCentralHeaderBytes, name_bytes);
  const std::string_view extra = rest.substr(kCentralHeaderBytes + name_bytes, extra_bytes);
  rest.remove_prefix(kCentralHeaderBytes + name_bytes + extra_bytes + comment_bytes);
  if (!read_zip64(extra, {&bytes, &stored_bytes, &local_header})) {
    return fail(Code::kCorrupt, "record " + in_quotes(name) + ": bad zip64 field");
  }
  if (flags & kEncryptedFlag) {
    return fail(Code::kUnsupported, "record " + in_quotes(name) + ": encrypted");
  }
  if (method != 0 || stored_bytes != bytes) {
    return fail(Code::kUnsupported, "record " + in_quotes(name) + ": compressed");
  }
  return Entry{{std::string(name), bytes, local_header, 0}, (flags & kDescriptorFlag) != 0};
}

// The record fills the file up to `limit`, where the next one begins, but for a descriptor behind
// its data. torch aligns data to 64 bytes, which tells a descriptor's two sizes apart; without a
// descriptor a header that has no extra field leaves no doubt either.
Result<void> place_record(Entry& entry, uint64_t limit) {
  ZipRecord& record = entry.record;
  const uint64_t earliest = record.local_header + kLocalHeaderBytes + record.name.size();
  if (earliest > limit || record.size > limit - earliest) {
    return fail(Code::kCorrupt, "record " + in_quotes(record.name) + ": does not fit its place");
  }
  const uint64_t latest = limit - record.size;
  if (record.size == 0) {
    record.data_begin = latest;
    return {};
  }
  if (!entry.has_descriptor) {
    record.data_begin = latest;
    if (latest == earliest || latest % kTorchAlignment == 0) return {};
  } else {
    for (const uint64_t descriptor : kDescriptorBytes) {
      if (latest - earliest < descriptor) break;
      record.data_begin = latest - descriptor;
      if (record.data_begin % kTorchAlignment == 0) return {};
    }
  }
  return fail(Code::kUnsupported,
              "record " + in_quotes(record.name) + ": not where torch.save would place it");
}

Result<void> place_records(std::vector<Entry>& entries, uint64_t directory_begin) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.record.local_header < b.record.local_header;
  });
  for (size_t i = 0; i < entries.size(); ++i) {
    const uint64_t limit =
        i + 1 < entries.size() ? entries[i + 1].record.local_header : directory_begin;
    if (entries[i].record.local_header > directory_begin) {
      return fail(Code::kCorrupt,
                  "record " + in_quotes(entries[i].record.name) + ": behind the directory");
    }
    if (Result<void> placed = place_record(entries[i], limit); !placed) return placed;
  }
  return {};
}

// What makes a zip one that torch.save wrote for a state dict. Fills folder and pickle.
Result<void> check_torch_records(TorchArchive& archive) {
  std::unordered_set<std::string_view> names;
  const ZipRecord* pickle = nullptr;
  for (const ZipRecord& record : archive.records) {
    if (!names.insert(record.name).second) {
      return fail(Code::kCorrupt, "record " + in_quotes(record.name) + " occurs twice");
    }
    const size_t slash = record.name.find('/');
    if (slash != std::string::npos && record.name.substr(slash) == "/data.pkl") {
      if (pickle) return fail(Code::kUnsupported, "several data.pkl");
      pickle = &record;
      archive.folder = record.name.substr(0, slash);
    }
  }
  if (!pickle) return fail(Code::kUnsupported, "a zip archive without a data.pkl, not torch's");
  if (pickle->size > kPickleMax) {
    return fail(Code::kLimit, "data.pkl of " + std::to_string(pickle->size) + " bytes");
  }
  if (names.contains(archive.folder + "/constants.pkl")) {
    return fail(Code::kUnsupported, "a TorchScript archive");
  }
  const std::string byteorder = archive.folder + "/byteorder";
  for (const ZipRecord& record : archive.records) {
    // "little" or "big": the length tells them apart.
    if (record.name == byteorder && record.size != std::string_view("little").size()) {
      return fail(Code::kUnsupported, "big-endian tensors");
    }
  }
  archive.pickle = {pickle->data_begin, pickle->size};
  return {};
}

}  // namespace

Result<ByteRange> find_zip_directory(std::span<const std::byte> tail, uint64_t file_size) {
  if (tail.size() != std::min(file_size, kZipTailBytes)) {
    return fail(Code::kInvalid, "a tail of " + std::to_string(tail.size()) + " bytes");
  }
  const std::string_view text = as_text(tail);
  const uint64_t tail_begin = file_size - tail.size();
  const std::optional<size_t> end = find_end_record(text);
  if (!end) {
    return fail(Code::kUnsupported, "legacy pickle or cut off: no zip directory at the end");
  }
  DirectoryEnd directory{read_le(text, *end + 16, 4), read_le(text, *end + 12, 4),
                         tail_begin + *end};
  if (*end >= kLocatorBytes && text.substr(*end - kLocatorBytes, 4) == kLocator64Signature) {
    const Result<DirectoryEnd> end64 = read_end64(text, *end, tail_begin);
    if (!end64) return tl::unexpected<Error>(end64.error());
    directory = *end64;
  } else if (read_le(text, *end + 4, 2) != 0 || read_le(text, *end + 6, 2) != 0) {
    return fail(Code::kUnsupported, "a zip archive of several disks");
  }
  if (directory.bytes > kZipDirectoryMax) {
    return fail(Code::kLimit, "zip directory of " + std::to_string(directory.bytes) + " bytes");
  }
  if (directory.offset > directory.at || directory.at - directory.offset != directory.bytes) {
    return fail(Code::kCorrupt, "zip directory is not right before its end record");
  }
  return ByteRange{directory.offset, directory.bytes};
}

Result<TorchArchive> parse_torch_archive(std::span<const std::byte> directory, ByteRange where,
                                         uint64_t file_size) {
  if (directory.size() != where.length || where.offset > file_size ||
      where.length > file_size - where.offset) {
    return fail(Code::kInvalid, "zip directory outside the file");
  }
  std::string_view rest = as_text(directory);
  std::vector<Entry> entries;
  while (!rest.empty()) {
    Result<Entry> entry = take_entry(rest);
    if (!entry) return tl::unexpected<Error>(entry.error());
    entries.push_back(std::move(*entry));
  }
  if (Result<void> placed = place_records(entries, where.offset); !placed) {
    return tl::unexpected<Error>(placed.error());
  }
  TorchArchive archive;
  for (Entry& entry : entries) archive.records.push_back(std::move(entry.record));
  if (Result<void> checked = check_torch_records(archive); !checked) {
    return tl::unexpected<Error>(checked.error());
  }
  return archive;
}

}  // namespace nexus
