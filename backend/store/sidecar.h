// The sidecar `<object>.meta`: all that is known of one object, enough to rebuild its catalog row.
// The catalog stores the same bytes, so there is one format, checked in one place.
//
// Version 1, little-endian, no padding but where said:
//
//   offset size
//        0    8  "NXSMETA1"
//        8    4  flags: bit 0 = the hub's SHA-256 was checked; other bits 0
//       12    4  0
//       16    8  length of this record in bytes, its final hash included
//       24    8  generation: of two objects with one key the higher is the newer
//       32    8  size of the object
//       40    8  last access, milliseconds since 1970
//       48    8  hits
//       56    8  bytes ever written to the zone when this was written (wear survives a lost
//       catalog) 64    4  length of key, then of model, name, sha256 (4 each) 80       key, model,
//       name, sha256, then zeros up to a multiple of 8
//                bitmap: ceil(chunks / 64) words of 8; bit n % 64 of word n / 64 = chunk n is
//                present one XXH3-64 (8 each) for every present chunk, in order
//       -8    8  XXH3-64 of everything before it
//
// A torn write cannot pass: the length and the hash stand at both ends. The hashes of absent chunks
// are left out, so that a sparse object's sidecar stays small. An unknown magic is an unknown
// version: the object is dropped and fetched again.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/store.h"

namespace nexus {

struct SidecarRecord {
  ObjectMeta meta;
  uint64_t generation = 0;
  uint64_t zone_bytes_written = 0;
  std::vector<uint64_t> bitmap;  // one word for 64 chunks
  std::vector<uint64_t> hashes;  // one for every chunk; 0 where absent

  uint64_t present_chunks() const;
  bool complete() const;
};

// Longest sidecar: an object of 4 TiB has 4 Mi chunks, 32 MiB of hashes.
inline constexpr size_t kSidecarMaxBytes = 64 << 20;

std::string encode_sidecar(const SidecarRecord& record);
// kCorrupt says what is wrong.
Result<SidecarRecord> decode_sidecar(std::string_view bytes);

}  // namespace nexus
