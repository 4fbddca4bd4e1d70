// torch zip checkpoints (pytorch_model*.bin) as a source of tensors, without running or trusting
// anything: only the zip directory and data.pkl are read, and the pickle goes through a restricted
// machine that knows the few opcodes and globals that torch.save of a state dict writes.
// Pure functions over bytes; the caller fetches the ranges. Input is hostile: bounded memory,
// bounded steps, every offset checked. Source: torch serialization.py, pickletools, PKZIP
// APPNOTE 4.3.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/format/tensor.h"

namespace nexus {

inline constexpr uint64_t kZipTailBytes =
    65'536 + 22 + 20 + 56;  // comment + EOCD + zip64 locator + EOCD64
inline constexpr uint64_t kZipDirectoryMax = 64'000'000;
inline constexpr uint64_t kPickleMax = 100'000'000;

// `tail` is the last min(file_size, kZipTailBytes) bytes. Returns where the central directory lies.
// kUnsupported with the reason ("legacy pickle, not a zip archive", ...) when it is not a zip.
Result<ByteRange> find_zip_directory(std::span<const std::byte> tail, uint64_t file_size);

struct ZipRecord {
  std::string name;
  uint64_t size = 0;
  uint64_t local_header = 0;
  // Where the data lies, worked out from the position of the next record (records of a torch
  // archive are contiguous) with data descriptors and torch's 64-byte alignment taken into account;
  // the caller reads no local headers.
  uint64_t data_begin = 0;
};

struct TorchArchive {
  std::string folder;              // "archive", "pytorch_model", ...
  std::vector<ZipRecord> records;  // by local_header
  ByteRange pickle;                // data.pkl's bytes
};

// kUnsupported when records are compressed, encrypted, big-endian or cannot be placed without
// doubt.
Result<TorchArchive> parse_torch_archive(std::span<const std::byte> directory, ByteRange where,
                                         uint64_t file_size);

// Runs data.pkl. Accepts a dict (or OrderedDict) of str -> tensor, also nested one level under
// "state_dict" or "model"; non-tensor values are skipped. kUnsupported for anything else, naming
// the global or opcode. Tensors come in dict order; contiguous views give exact [begin, end),
// others keep their strides (see TensorInfo).
Result<std::vector<TensorInfo>> read_torch_pickle(std::string_view pickle,
                                                  const TorchArchive& archive);

}  // namespace nexus
