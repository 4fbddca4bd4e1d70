// Lays out a stored (uncompressed) zip of literal records and of records whose bytes come from
// origin files. One thread. Source: PKZIP APPNOTE 4.3; facts: shared/formats.md "torch .pt (zip)".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "backend/format/object_layout.h"

namespace nexus {

class ZipWriter {
 public:
  // A record whose bytes are known now.
  void add_literal(std::string_view name, std::string_view bytes);
  // A record that is [src, src + length) of origin file `file`, aligned to `alignment`, with its
  // CRC-32 left for whoever fills the object. kLimit where the archive would pass 2^62 bytes.
  Result<void> add_extent(std::string_view name, Extent source, uint64_t alignment);
  // Adds the directory and hands the layout over. The writer is spent.
  ObjectLayout finish();

 private:
  struct Entry {
    std::string name;
    uint64_t size = 0;
    uint64_t local_header = 0;
    uint32_t crc = 0;
    size_t crc_record = kNoCrcRecord;  // in layout_.crc_records
  };
  static constexpr size_t kNoCrcRecord = SIZE_MAX;

  // Writes the local header; layout_.size is then where the record's data begins.
  Entry& begin_record(std::string_view name, uint64_t size, uint32_t crc, uint64_t alignment);
  void append(std::string_view bytes);
  void append_end_records(uint64_t directory_begin);

  ObjectLayout layout_;
  std::vector<Entry> entries_;
};

}  // namespace nexus
