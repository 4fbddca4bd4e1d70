#include "tools/libnexuscache/layer_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "backend/format/layout_image.h"
#include "backend/format/torch_file.h"

namespace nexus::cache {
Layer::~Layer() = default;
}

namespace nexus::tools {

namespace {

using nexus::cache::Layer;
using nexus::cache::Tensor;

// Owns a mapping of a whole file.
class Mapping {
 public:
  Mapping(int fd, size_t size, int protection)
      : size_(size), data_(::mmap(nullptr, size, protection, MAP_SHARED, fd, 0)) {}
  ~Mapping() {
    if (*this) ::munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  explicit operator bool() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  void* const data_;
};

// Row-major without gaps. Where a dimension is 1 its stride says nothing.
bool contiguous(const Tensor& tensor) {
  if (tensor.strides.empty()) return true;
  if (tensor.strides.size() != tensor.shape.size()) return false;
  uint64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] > 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

Result<std::vector<TensorInfo>> infos_of(const std::vector<Tensor>& tensors) {
  std::vector<TensorInfo> infos;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    const auto bad = [&](const std::string& why) {
      return fail(Code::kInvalid, "tensor " + tensor.name + ": " + why);
    };
    auto dtype = dtype_from_name(tensor.dtype);
    if (!dtype && tensor.dtype == dtype_name(Dtype::kC128)) dtype = Dtype::kC128;
    if (!dtype) return bad("no dtype is called '" + tensor.dtype + "'");
    if (!contiguous(tensor)) return bad("is not contiguous");
    const auto bytes = dense_bytes(*dtype, tensor.shape);
    if (!bytes || *bytes != tensor.bytes) return bad("shape, dtype and bytes disagree");
    if (!tensor.data && tensor.bytes > 0) return bad("has no data");
    TensorInfo info;
    info.name = tensor.name;
    info.dtype = *dtype;
    info.shape = tensor.shape;
    info.file = static_cast<uint32_t>(i);  // each is a source of its own
    info.end = tensor.bytes;
    infos.push_back(std::move(info));
  }
  return infos;
}

class MappedLayer final : public Layer {
 public:
  MappedLayer(std::unique_ptr<Mapping> mapping, ControlClient lease,
              const std::vector<TensorInfo>& infos)
      : mapping_(std::move(mapping)), lease_(std::move(lease)) {
    for (const TensorInfo& info : infos) {
      Tensor tensor;
      tensor.name = info.name;
      tensor.dtype = std::string(dtype_name(info.dtype));
      tensor.shape = info.shape;
      tensor.strides = info.stride;
      const uint64_t skipped = info.storage_offset * (dtype_bits(info.dtype) / 8);
      tensor.data = mapping_->data() + info.begin + skipped;
      tensor.bytes = info.end - info.begin - skipped;
      tensors_.push_back(std::move(tensor));
    }
    for (const Tensor& tensor : tensors_) by_name_.emplace(tensor.name, &tensor);
  }
  const std::vector<Tensor>& tensors() const override { return tensors_; }
  const Tensor* find(const std::string& name) const override {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : it->second;
  }
  const void* data() const override { return mapping_->data(); }
  size_t size() const override { return mapping_->size(); }

 private:
  const std::unique_ptr<Mapping> mapping_;
  const ControlClient lease_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, const Tensor*> by_name_;
};

}  // namespace

Result<std::shared_ptr<const Descriptor>> make_layer_file(const std::string& name,
                                                          const std::vector<Tensor>& tensors) {
  if (tensors.empty()) return fail(Code::kInvalid, "a layer of no tensors");
  auto infos = infos_of(tensors);
  if (!infos) return tl::unexpected(infos.error());
  auto layout = torch_layer_layout(name, *infos);
  if (!layout) return tl::unexpected(layout.error());
  auto image = LayoutImage::make(
      std::move(*layout),
      [&tensors](uint32_t file, uint64_t at, std::span<std::byte> into) -> Result<void> {
        std::memcpy(into.data(), static_cast<const std::byte*>(tensors[file].data) + at,
                    into.size());
        return {};
      });
  if (!image) return tl::unexpected(image.error());
  const auto refused = [](const char* call) {
    return fail(Code::kLimit, std::string(call) + ": " + std::strerror(errno));
  };
  const int fd = ::memfd_create("nexus-layer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return refused("memfd_create");
  auto file = std::make_shared<const Descriptor>(fd);
  // Allocated now: a memory limit is an error here, and would be a signal at the first touch.
  if (const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(image->size())); error != 0) {
    errno = error;
    return refused("memory for the layer");
  }
  {
    const Mapping mapping(fd, image->size(), PROT_READ | PROT_WRITE);
    if (!mapping) return refused("mmap");
    if (auto filled = image->read(0, {mapping.data(), mapping.size()}); !filled) {
      return tl::unexpected(filled.error());
    }
  }
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
    return refused("sealing the layer");
  }
  return file;
}

Result<nexus::cache::LayerPtr> map_layer(const std::string& name, const Descriptor& file,
                                         ControlClient lease) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0)
    return fail(Code::kDisk, name + ": " + std::strerror(errno));
  auto mapping =
      std::make_unique<Mapping>(file.get(), static_cast<size_t>(status.st_size), PROT_READ);
  if (!*mapping) return fail(Code::kLimit, name + ": mmap: " + std::strerror(errno));
  auto infos =
      tensors_of_torch_file(mapping->size(), [&mapping](ByteRange range) -> Result<std::string> {
        return std::string(reinterpret_cast<const char*>(mapping->data()) + range.offset,
                           range.length);
      });
  if (!infos) return fail(infos.error(), name);
  return nexus::cache::LayerPtr(
      std::make_shared<MappedLayer>(std::move(mapping), std::move(lease), *infos));
}

}  // namespace nexus::tools
