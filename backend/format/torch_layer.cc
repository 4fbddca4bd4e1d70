#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "backend/format/little_endian.h"
#include "backend/format/object_layout.h"
#include "backend/format/strides.h"
#include "backend/format/text.h"
#include "backend/format/torch_dtype.h"
#include "backend/format/zip_writer.h"

namespace nexus {
namespace {

// A multiple of every block size that O_DIRECT, registered memory and GPUDirect ask for here.
constexpr uint64_t kRecordAlignment = 4096;
constexpr size_t kArchiveNameMax = 1000;
constexpr size_t kPickleMaxBytes = std::numeric_limits<uint32_t>::max() - 1;

// A tensor as torch will rebuild it.
struct View {
  std::vector<uint64_t> shape;
  std::vector<uint64_t> stride;
  uint64_t offset = 0;  // in elements
  uint64_t bytes = 0;   // of the storage
};

// Whether every element of the strided tensor lies in the first `elements` of its storage.
bool fits_storage(const TensorInfo& tensor, uint64_t elements) {
  if (tensor.stride.size() != tensor.shape.size()) return false;
  const std::optional<uint64_t> extent = strided_extent(tensor.shape, tensor.stride);
  return extent && tensor.storage_offset <= elements && *extent <= elements - tensor.storage_offset;
}

Result<View> torch_view(const TensorInfo& tensor) {
  const auto bad = [&tensor](Code code, const std::string& why) {
    return fail(code, "tensor " + in_quotes(tensor.name) + ": " + why);
  };
  if (torch_dtype_name(tensor.dtype).empty()) {
    return bad(Code::kUnsupported, "torch has no dtype " + std::string(dtype_name(tensor.dtype)));
  }
  if (tensor.end < tensor.begin) return bad(Code::kInvalid, "ends before it begins");
  View view{tensor.shape, tensor.stride, tensor.storage_offset, tensor.end - tensor.begin};
  if (tensor.stride.empty()) {
    if (dense_bytes(tensor.dtype, tensor.shape) != view.bytes || view.offset != 0) {
      return bad(Code::kInvalid, "shape and bytes disagree");
    }
    if (tensor.dtype == Dtype::kF4) {
      if (view.shape.empty() || view.shape.back() % 2 != 0) {
        return bad(Code::kUnsupported, "torch holds F4 in pairs along the last dimension");
      }
      view.shape.back() /= 2;
    }
    const std::optional<std::vector<uint64_t>> strides = dense_strides(view.shape);
    if (!strides) return bad(Code::kUnsupported, "the shape overflows torch's strides");
    view.stride = *strides;
  } else {
    const uint64_t element_bytes = dtype_bits(tensor.dtype) / 8;
    if (element_bytes == 0) return bad(Code::kUnsupported, "a strided F4 tensor");
    if (view.bytes % element_bytes != 0 || !fits_storage(tensor, view.bytes / element_bytes)) {
      return bad(Code::kInvalid, "strides reach past the storage");
    }
  }
  for (const std::vector<uint64_t>* numbers : {&view.shape, &view.stride}) {
    for (const uint64_t number : *numbers) {
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return bad(Code::kUnsupported, "the shape overflows torch's int64");
      }
    }
  }
  return view;
}

// Pickle protocol 2. Opcodes are spelled by pickletools' names.
class PickleWriter {
 public:
  PickleWriter() {
    op('\x80');  // PROTO
    op('\x02');
    op('}');  // EMPTY_DICT
    op('(');  // MARK
  }

  void tensor(const TensorInfo& tensor, const View& view, std::string_view storage_key) {
    const std::string_view storage_class = torch_storage_class(tensor.dtype);
    const bool typed = !storage_class.empty();
    text(tensor.name);
    global("torch._utils", typed ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
    op('(');  // MARK
    storage(typed ? "torch" : "torch.storage", typed ? storage_class : "UntypedStorage",
            storage_key, typed ? view.bytes / (dtype_bits(tensor.dtype) / 8) : view.bytes);
    integer(view.offset);
    tuple(view.shape);
    tuple(view.stride);
    op('\x89');  // NEWFALSE: requires_grad
    global("collections", "OrderedDict");
    op(')');  // EMPTY_TUPLE
    op('R');  // REDUCE
    if (!typed) global("torch", torch_dtype_name(tensor.dtype));
    op('t');  // TUPLE
    op('R');  // REDUCE
  }

  size_t size() const { return bytes_.size(); }

  std::string finish() {
    op('u');  // SETITEMS
    op('.');  // STOP
    return std::move(bytes_);
  }

 private:
  void op(char code) { bytes_ += code; }

  void global(std::string_view module, std::string_view name) {
    op('c');  // GLOBAL
    bytes_ += module;
    bytes_ += '\n';
    bytes_ += name;
    bytes_ += '\n';
  }

  void text(std::string_view utf8) {
    op('X');  // BINUNICODE
    put_le(bytes_, utf8.size(), 4);
    bytes_ += utf8;
  }

  void integer(uint64_t value) {
    if (value <= 0xFF) {
      op('K');  // BININT1
      put_le(bytes_, value, 1);
    } else if (value <= 0xFFFF) {
      op('M');  // BININT2
      put_le(bytes_, value, 2);
    } else if (value <= 0x7FFF'FFFF) {
      op('J');  // BININT
      put_le(bytes_, value, 4);
    } else {
      op('\x8A');  // LONG1, 9 bytes: the highest bit is the sign
      op('\x09');
      put_le(bytes_, value, 8);
      put_le(bytes_, 0, 1);
    }
  }

  void tuple(const std::vector<uint64_t>& values) {
    if (values.empty()) return op(')');  // EMPTY_TUPLE
    if (values.size() > 3) op('(');      // MARK
    for (const uint64_t value : values) integer(value);
    if (values.size() > 3) return op('t');              // TUPLE
    op(static_cast<char>('\x85' + values.size() - 1));  // TUPLE1, TUPLE2, TUPLE3
  }

  void storage(std::string_view module, std::string_view storage_class, std::string_view key,
               uint64_t elements) {
    op('(');  // MARK
    text("storage");
    global(module, storage_class);
    text(key);
    text("cpu");
    integer(elements);
    op('t');  // TUPLE
    op('Q');  // BINPERSID
  }

  std::string bytes_;
};

}  // namespace

Result<ObjectLayout> torch_layer_layout(const std::string& archive,
                                        std::span<const TensorInfo> tensors) {
  if (archive.empty() || archive.size() > kArchiveNameMax ||
      archive.find('/') != std::string::npos || !is_utf8(archive)) {
    return fail(Code::kInvalid, "archive name " + in_quotes(archive));
  }
  std::set<std::string_view> names;
  // A storage has one class, so tensors share it only where their dtype is the same too.
  std::map<std::tuple<uint32_t, uint64_t, uint64_t, Dtype>, uint64_t> keys;
  std::vector<Extent> storages;  // by key
  PickleWriter pickle;
  for (const TensorInfo& tensor : tensors) {
    if (!names.insert(tensor.name).second || !is_utf8(tensor.name)) {
      return fail(Code::kInvalid, "tensor " + in_quotes(tensor.name) + ": twice, or not UTF-8");
    }
    const Result<View> view = torch_view(tensor);
    if (!view) return tl::unexpected<Error>(view.error());
    const auto [found, is_new] =
        keys.try_emplace({tensor.file, tensor.begin, tensor.end, tensor.dtype}, storages.size());
    if (is_new) storages.push_back({0, view->bytes, tensor.file, tensor.begin});
    pickle.tensor(tensor, *view, std::to_string(found->second));
    if (pickle.size() > kPickleMaxBytes) return fail(Code::kLimit, "data.pkl of over 4 GiB");
  }
  // No .format_version: with it torch may compute record offsets itself, for miniz's layout.
  ZipWriter zip;
  zip.add_literal(archive + "/data.pkl", pickle.finish());
  zip.add_literal(archive + "/byteorder", "little");
  zip.add_literal(archive + "/version", "3\n");
  for (size_t key = 0; key < storages.size(); ++key) {
    const std::string name = archive + "/data/" + std::to_string(key);
    if (Result<void> added = zip.add_extent(name, storages[key], kRecordAlignment); !added) {
      return tl::unexpected<Error>(added.error());
    }
  }
  return zip.finish();
}

}  // namespace nexus
