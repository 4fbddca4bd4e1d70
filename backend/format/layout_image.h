// The bytes of a file that a layout describes, with the CRCs of its zip records, for whoever can
// read the sources at once: what the cache does piece by piece while bytes come from an origin
// (cache/fill.cc). Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "backend/base/error.h"
#include "backend/format/object_layout.h"

namespace nexus {

class LayoutImage {
 public:
  // Bytes [src, src + into.size()) of origin file number `file`.
  using Source =
      std::function<Result<void>(uint32_t file, uint64_t src, std::span<std::byte> into)>;

  // Reads every record once, for its CRC-32.
  static Result<LayoutImage> make(ObjectLayout layout, Source source);

  uint64_t size() const { return layout_.size; }
  // Bytes [offset, offset + into.size()) of the file, within its size.
  Result<void> read(uint64_t offset, std::span<std::byte> into) const;

 private:
  LayoutImage(ObjectLayout layout, Source source)
      : layout_(std::move(layout)), source_(std::move(source)) {}
  Result<void> add_crc(const CrcRecord& record);

  ObjectLayout layout_;
  Source source_;
  std::vector<std::pair<uint64_t, uint32_t>> crcs_;  // place, value
};

}  // namespace nexus
