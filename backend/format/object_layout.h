// How the bytes of a file in the tree follow from the bytes of origin files. Everything the cache
// stores is described this way: an origin file is one extent, a layer file is a few literal bytes
// (headers, pickle, directory) between extents of shards.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/format/tensor.h"

namespace nexus {

// [dest, dest + length) of the object is [src, src + length) of origin file number `file`.
struct Extent {
  uint64_t dest = 0;
  uint64_t length = 0;
  uint32_t file = 0;
  uint64_t src = 0;
};

struct Literal {
  uint64_t dest = 0;
  std::string bytes;
};

// A zip record whose CRC-32 is known only when its bytes are here: written little-endian at each
// offset of `crc_at` (local header and central directory) once the object is filled.
struct CrcRecord {
  uint64_t begin = 0;  // the record's data, in the object
  uint64_t end = 0;
  uint64_t crc_at[2] = {0, 0};
};

// Invariants: literals and extents are sorted by dest, do not overlap, and end at or before size;
// bytes covered by neither are zero (alignment padding).
struct ObjectLayout {
  uint64_t size = 0;
  std::vector<Literal> literals;
  std::vector<Extent> extents;
  std::vector<CrcRecord> crc_records;  // not empty: the object is complete or absent, never sparse
};

// `layer_N.pt`: a stored zip that torch.load reads (weights_only and mmap too), tensor records
// aligned to 4096, no .format_version, zip64 where needed. `archive` is the name of the zip's
// folder. Tensors that cover the same bytes of the same file share one storage (tied weights). Keys
// of the dict are the full tensor names in the order given. Source: torch serialization.py;
// shared/formats.md "torch .pt".
Result<ObjectLayout> torch_layer_layout(const std::string& archive,
                                        std::span<const TensorInfo> tensors);

// The same tensors as one .safetensors file whose header is padded with spaces so that data starts
// on a multiple of 4096. Tensors are ordered as safetensors' writers do (descending dtype size,
// then name). Fails with kUnsupported for a strided (non-contiguous) tensor or kC128.
Result<ObjectLayout> safetensors_layer_layout(std::span<const TensorInfo> tensors);

// One origin file as it is.
ObjectLayout whole_file_layout(uint32_t file, uint64_t size);

}  // namespace nexus
