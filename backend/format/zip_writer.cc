#include "backend/format/zip_writer.h"

#include <zlib.h>

#include "backend/format/little_endian.h"

namespace nexus {
namespace {

constexpr uint64_t kMax32 = 0xFFFF'FFFF;  // in a 32-bit field: see the zip64 extra field
constexpr uint64_t kMax16 = 0xFFFF;
constexpr uint64_t kArchiveMax = uint64_t{1} << 62;

constexpr uint32_t kLocalSignature = 0x04034B50;
constexpr uint32_t kCentralSignature = 0x02014B50;
constexpr uint32_t kEndSignature = 0x06054B50;
constexpr uint32_t kEnd64Signature = 0x06064B50;
constexpr uint32_t kLocator64Signature = 0x07064B50;

constexpr uint64_t kLocalCrcAt = 14;
constexpr uint64_t kCentralCrcAt = 16;
constexpr uint16_t kZip64Extra = 0x0001;
constexpr uint16_t kPaddingExtra = 0x4246;  // "FB", the id that torch pads with
constexpr uint64_t kLocalZip64ExtraBytes = 4 + 8 + 8;

constexpr uint16_t kVersion = 20;
constexpr uint16_t kVersionZip64 = 45;
constexpr uint16_t kMadeByUnix = 3 << 8;
constexpr uint32_t kRegularFile0644 = 0100644u << 16;
constexpr uint16_t kUtf8Name = 1 << 11;
constexpr uint16_t kDosDate1980 = 1 << 5 | 1;  // 1 January 1980: a date of 0 is not one

bool is_ascii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

// What local header and central directory share, from "version needed" to the name's length.
void put_common(std::string& out, std::string_view name, uint64_t size, uint32_t crc, bool zip64) {
  put_le(out, zip64 ? kVersionZip64 : kVersion, 2);
  put_le(out, is_ascii(name) ? 0 : kUtf8Name, 2);
  put_le(out, 0, 2);  // stored
  put_le(out, 0, 2);  // time
  put_le(out, kDosDate1980, 2);
  put_le(out, crc, 4);
  const uint64_t size32 = size >= kMax32 ? kMax32 : size;
  put_le(out, size32, 4);
  put_le(out, size32, 4);
  put_le(out, name.size(), 2);
}

}  // namespace

void ZipWriter::append(std::string_view bytes) {
  std::vector<Literal>& literals = layout_.literals;
  if (literals.empty() || literals.back().dest + literals.back().bytes.size() != layout_.size) {
    literals.push_back({layout_.size, {}});
  }
  literals.back().bytes += bytes;
  layout_.size += bytes.size();
}

ZipWriter::Entry& ZipWriter::begin_record(std::string_view name, uint64_t size, uint32_t crc,
                                          uint64_t alignment) {
  const bool zip64 = size >= kMax32;
  Entry entry{std::string(name), size, layout_.size, crc};
  std::string header;
  put_le(header, kLocalSignature, 4);
  put_common(header, name, size, crc, zip64);
  const uint64_t zip64_bytes = zip64 ? kLocalZip64ExtraBytes : 0;
  uint64_t padding_bytes = 0;
  if (alignment > 1) {
    // The 2 is the extra field's length, which put_common leaves to us; 4 are the padding's id,
    // length.
    const uint64_t unpadded = layout_.size + header.size() + 2 + name.size() + zip64_bytes + 4;
    padding_bytes = 4 + (alignment - unpadded % alignment) % alignment;
  }
  put_le(header, zip64_bytes + padding_bytes, 2);
  header += name;
  if (zip64) {
    put_le(header, kZip64Extra, 2);
    put_le(header, 16, 2);
    put_le(header, size, 8);
    put_le(header, size, 8);
  }
  if (padding_bytes > 0) {
    put_le(header, kPaddingExtra, 2);
    put_le(header, padding_bytes - 4, 2);
  }
  append(header);
  if (padding_bytes > 0) layout_.size += padding_bytes - 4;  // zeros, in no literal
  return entries_.emplace_back(std::move(entry));
}

void ZipWriter::add_literal(std::string_view name, std::string_view bytes) {
  const auto crc =
      static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
  begin_record(name, bytes.size(), crc, 1);
  append(bytes);
}

Result<void> ZipWriter::add_extent(std::string_view name, Extent source, uint64_t alignment) {
  if (source.length > kArchiveMax || layout_.size > kArchiveMax - source.length) {
    return fail(Code::kLimit, "an archive of over 2^62 bytes");
  }
  if (source.length == 0) {
    begin_record(name, 0, 0, 1);
    return {};
  }
  Entry& entry = begin_record(name, source.length, 0, alignment);
  entry.crc_record = layout_.crc_records.size();
  source.dest = layout_.size;
  layout_.extents.push_back(source);
  layout_.size += source.length;
  layout_.crc_records.push_back({source.dest, layout_.size, {entry.local_header + kLocalCrcAt, 0}});
  return {};
}

void ZipWriter::append_end_records(uint64_t directory_begin) {
  const uint64_t directory_bytes = layout_.size - directory_begin;
  const uint64_t count = entries_.size();
  std::string end;
  if (count >= kMax16 || directory_bytes >= kMax32 || directory_begin >= kMax32) {
    put_le(end, kEnd64Signature, 4);
    put_le(end, 44, 8);  // bytes of this record after this field
    put_le(end, kMadeByUnix | kVersionZip64, 2);
    put_le(end, kVersionZip64, 2);
    put_le(end, 0, 4);  // this disk
    put_le(end, 0, 4);  // the directory's disk
    put_le(end, count, 8);
    put_le(end, count, 8);
    put_le(end, directory_bytes, 8);
    put_le(end, directory_begin, 8);
    put_le(end, kLocator64Signature, 4);
    put_le(end, 0, 4);  // the disk of the record above
    put_le(end, layout_.size, 8);
    put_le(end, 1, 4);  // disks
  }
  put_le(end, kEndSignature, 4);
  put_le(end, 0, 2);
  put_le(end, 0, 2);
  put_le(end, count >= kMax16 ? kMax16 : count, 2);
  put_le(end, count >= kMax16 ? kMax16 : count, 2);
  put_le(end, directory_bytes >= kMax32 ? kMax32 : directory_bytes, 4);
  put_le(end, directory_begin >= kMax32 ? kMax32 : directory_begin, 4);
  put_le(end, 0, 2);  // comment
  append(end);
}

ObjectLayout ZipWriter::finish() {
  const uint64_t directory_begin = layout_.size;
  std::string directory;
  for (const Entry& entry : entries_) {
    const bool big_size = entry.size >= kMax32;
    const bool big_offset = entry.local_header >= kMax32;
    std::string extra;
    if (big_size) {
      put_le(extra, entry.size, 8);
      put_le(extra, entry.size, 8);
    }
    if (big_offset) put_le(extra, entry.local_header, 8);
    if (entry.crc_record != kNoCrcRecord) {
      layout_.crc_records[entry.crc_record].crc_at[1] =
          directory_begin + directory.size() + kCentralCrcAt;
    }
    put_le(directory, kCentralSignature, 4);
    put_le(directory, kMadeByUnix | kVersionZip64, 2);
    put_common(directory, entry.name, entry.size, entry.crc, !extra.empty());
    put_le(directory, extra.empty() ? 0 : 4 + extra.size(), 2);
    put_le(directory, 0, 2);  // comment
    put_le(directory, 0, 2);  // disk
    put_le(directory, 0, 2);  // internal attributes
    put_le(directory, kRegularFile0644, 4);
    put_le(directory, big_offset ? kMax32 : entry.local_header, 4);
    directory += entry.name;
    if (!extra.empty()) {
      put_le(directory, kZip64Extra, 2);
      put_le(directory, extra.size(), 2);
      directory += extra;
    }
  }
  append(directory);
  append_end_records(directory_begin);
  return std::move(layout_);
}

}  // namespace nexus
