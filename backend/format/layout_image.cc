#include "backend/format/layout_image.h"

#include <libdeflate.h>

#include <algorithm>
#include <cstring>

namespace nexus {

namespace {
constexpr uint64_t kCrcStep = 1 << 20;

// Copies what `bytes`, which lie at `at`, have of the window that begins at `offset`.
void overlay(uint64_t at, std::span<const std::byte> bytes, uint64_t offset,
             std::span<std::byte> window) {
  const uint64_t begin = std::max(at, offset);
  const uint64_t end = std::min(at + bytes.size(), offset + window.size());
  if (begin < end) std::memcpy(&window[begin - offset], &bytes[begin - at], end - begin);
}
}  // namespace

Result<LayoutImage> LayoutImage::make(ObjectLayout layout, Source source) {
  LayoutImage image(std::move(layout), std::move(source));
  std::vector<CrcRecord> records = image.layout_.crc_records;
  for (const CrcRecord& record : records) {
    if (auto added = image.add_crc(record); !added) return tl::unexpected<Error>(added.error());
  }
  return image;
}

Result<void> LayoutImage::add_crc(const CrcRecord& record) {
  uint32_t crc = 0;
  std::vector<std::byte> buffer(std::min(kCrcStep, record.end - record.begin));
  for (uint64_t at = record.begin; at < record.end; at += kCrcStep) {
    const auto bytes = std::span(buffer).first(std::min(kCrcStep, record.end - at));
    if (auto got = read(at, bytes); !got) return got;
    crc = libdeflate_crc32(crc, bytes.data(), bytes.size());
  }
  for (const uint64_t at : record.crc_at) crcs_.emplace_back(at, crc);
  return {};
}

Result<void> LayoutImage::read(uint64_t offset, std::span<std::byte> into) const {
  const uint64_t end = offset + into.size();
  if (end > layout_.size) return fail(Code::kInvalid, "beyond the end of the file");
  std::fill(into.begin(), into.end(), std::byte{0});  // padding
  for (const Literal& literal : layout_.literals) {
    overlay(literal.dest, std::as_bytes(std::span(literal.bytes)), offset, into);
  }
  const auto& extents = layout_.extents;
  auto extent = std::upper_bound(extents.begin(), extents.end(), offset,
                                 [](uint64_t at, const Extent& e) { return at < e.dest; });
  if (extent != extents.begin()) --extent;
  for (; extent != extents.end() && extent->dest < end; ++extent) {
    const uint64_t from = std::max(offset, extent->dest);
    const uint64_t to = std::min(end, extent->dest + extent->length);
    if (from >= to) continue;
    auto got = source_(extent->file, extent->src + (from - extent->dest),
                       into.subspan(from - offset, to - from));
    if (!got) return got;
  }
  for (const auto& [at, crc] : crcs_) {
    std::byte field[4];
    for (int byte = 0; byte < 4; ++byte) field[byte] = static_cast<std::byte>(crc >> (8 * byte));
    overlay(at, field, offset, into);
  }
  return {};
}

}  // namespace nexus
