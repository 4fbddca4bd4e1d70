// A torch zip checkpoint: zip directory and data.pkl. A first byte of 0 takes the rest as a pickle
// alone, over an archive with one storage, so that the fuzzer need not keep a zip intact.
#include <cstdlib>

#include "backend/format/object_layout.h"
#include "backend/format/torch_checkpoint.h"

namespace {

using namespace nexus;

void require(bool condition) {
  if (!condition) std::abort();
}

void read_pickle(std::string_view pickle, const TorchArchive& archive, uint64_t file_size) {
  const Result<std::vector<TensorInfo>> tensors = read_torch_pickle(pickle, archive);
  if (!tensors) return;
  for (const TensorInfo& tensor : *tensors) {
    require(tensor.begin <= tensor.end && tensor.end <= file_size);
  }
  const Result<ObjectLayout> layout = torch_layer_layout("layer_0", *tensors);
  if (!layout) return;
  uint64_t at = 0;
  for (const Extent& extent : layout->extents) {
    require(extent.dest >= at && extent.src + extent.length <= file_size);
    at = extent.dest + extent.length;
  }
  require(at <= layout->size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (data[0] == 0) {
    constexpr uint64_t kFileSize = 1 << 20;
    const TorchArchive archive{"a", {{"a/data/0", 4096, 0, 64}}, {}};
    read_pickle(input.substr(1), archive, kFileSize);
    return 0;
  }
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const Result<ByteRange> directory =
      find_zip_directory(bytes.last(size < kZipTailBytes ? size : kZipTailBytes), size);
  if (!directory) return 0;
  require(directory->end() <= size);
  const Result<TorchArchive> archive =
      parse_torch_archive(bytes.subspan(directory->offset, directory->length), *directory, size);
  if (!archive) return 0;
  for (const ZipRecord& record : archive->records) {
    require(record.data_begin <= size && record.size <= size - record.data_begin);
  }
  require(archive->pickle.end() <= size);
  read_pickle(input.substr(archive->pickle.offset, archive->pickle.length), *archive, size);
  return 0;
}
