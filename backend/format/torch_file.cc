#include "backend/format/torch_file.h"

#include <algorithm>
#include <span>
#include <utility>

#include "backend/format/safetensors.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {

namespace {
Result<std::string> part_of(uint64_t size, const RangeOfFile& read, ByteRange range,
                            uint64_t length_max) {
  if (range.offset > size || range.length > size - range.offset) {
    return fail(Code::kCorrupt, "a part of it lies beyond its end");
  }
  if (range.length > length_max) {
    return fail(Code::kLimit, "a header of " + std::to_string(range.length) + " bytes");
  }
  return read(range);
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Whoever trusts the list would read what lies elsewhere.
Result<std::vector<TensorInfo>> inside(std::vector<TensorInfo> tensors, uint64_t size) {
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin > tensor.end || tensor.end > size) {
      return fail(Code::kCorrupt, "tensor " + tensor.name + " lies beyond the file's end");
    }
  }
  return tensors;
}
}  // namespace

Result<std::vector<TensorInfo>> tensors_of_torch_file(uint64_t size, const RangeOfFile& read) {
  const uint64_t tail_bytes = std::min(size, kZipTailBytes);
  auto tail = part_of(size, read, {size - tail_bytes, tail_bytes}, kZipTailBytes);
  if (!tail) return tl::unexpected<Error>(tail.error());
  auto where = find_zip_directory(bytes_of(*tail), size);
  if (!where) return tl::unexpected<Error>(where.error());
  auto directory = part_of(size, read, *where, kZipDirectoryMax);
  if (!directory) return tl::unexpected<Error>(directory.error());
  auto archive = parse_torch_archive(bytes_of(*directory), *where, size);
  if (!archive) return tl::unexpected<Error>(archive.error());
  auto pickle = part_of(size, read, archive->pickle, kPickleMax);
  if (!pickle) return tl::unexpected<Error>(pickle.error());
  auto tensors = read_torch_pickle(*pickle, *archive);
  if (!tensors) return tensors;
  return inside(std::move(*tensors), size);
}

Result<std::vector<TensorInfo>> tensors_of_safetensors_file(uint64_t size,
                                                            const RangeOfFile& read) {
  auto first8 = part_of(size, read, {0, 8}, 8);
  if (!first8) return tl::unexpected<Error>(first8.error());
  auto length = safetensors_header_length(bytes_of(*first8), size);
  if (!length) return tl::unexpected<Error>(length.error());
  auto json = part_of(size, read, {8, *length}, kSafetensorsHeaderMax);
  if (!json) return tl::unexpected<Error>(json.error());
  auto header = parse_safetensors_header(*json, size);
  if (!header) return tl::unexpected<Error>(header.error());
  return inside(std::move(header->tensors), size);
}

}  // namespace nexus
