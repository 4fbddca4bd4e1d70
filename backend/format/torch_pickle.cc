#include <optional>
#include <unordered_map>

#include "backend/format/pickle_machine.h"
#include "backend/format/strides.h"
#include "backend/format/text.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {
namespace {

constexpr size_t kTensorNameMax = 1024;  // a memo may repeat a name as often as it likes

using RecordsByName = std::unordered_map<std::string_view, const ZipRecord*>;

// The view in bytes of the file; `name` is the caller's to set.
Result<TensorInfo> place_tensor(const PickleTensor& tensor, const PickleStorage& storage,
                                const ZipRecord& record) {
  const bool is_f4 = tensor.dtype == Dtype::kF4;  // torch counts its pairs, one a byte
  const uint64_t element_bytes = is_f4 ? 1 : dtype_bits(tensor.dtype) / 8;
  const uint64_t unit_bytes = storage.typed ? dtype_bits(storage.dtype) / 8 : 1;
  if (storage.elements > record.size / unit_bytes) {
    return fail(Code::kCorrupt, "storage " + in_quotes(record.name) + " holds " +
                                    std::to_string(record.size) + " bytes, too few");
  }
  const uint64_t elements = storage.elements * unit_bytes / element_bytes;
  const std::optional<uint64_t> extent = strided_extent(tensor.shape, tensor.stride);
  if (!extent ||
      (*extent > 0 && (tensor.offset > elements || *extent > elements - tensor.offset))) {
    return fail(Code::kCorrupt, "reaches past its storage " + in_quotes(record.name));
  }
  TensorInfo info;
  info.dtype = tensor.dtype;
  info.shape = tensor.shape;
  info.begin = info.end = record.data_begin;
  const bool dense = is_dense(tensor.shape, tensor.stride);
  if (is_f4) {
    if (!dense || info.shape.empty() ||
        __builtin_mul_overflow(info.shape.back(), uint64_t{2}, &info.shape.back())) {
      return fail(Code::kUnsupported, "a strided F4 tensor");
    }
  }
  if (*extent == 0) return info;
  if (dense) {
    info.begin += tensor.offset * element_bytes;
    info.end = info.begin + *extent * element_bytes;
  } else {
    info.stride = tensor.stride;
    info.storage_offset = tensor.offset;
    info.end += elements * element_bytes;
  }
  return info;
}

// The dict that holds the tensors: one nested under a trainer's usual names, else the value itself.
PickleValue find_state_dict(const PickleMachine& machine, const PickleValue& top) {
  const auto holds_tensors = [&machine](const PickleValue& value) {
    if (value.kind != PickleKind::kDict) return false;
    for (const auto& [key, item] : machine.dict(value)) {
      if (key.kind == PickleKind::kText && item.kind == PickleKind::kTensor) return true;
    }
    return false;
  };
  for (const std::string_view name : {"state_dict", "model"}) {
    // The last of equal keys counts. Looking at all of them would let a hostile pickle repeat one.
    const PickleValue* nested = nullptr;
    for (const auto& [key, value] : machine.dict(top)) {
      if (key.kind == PickleKind::kText && machine.text(key) == name) nested = &value;
    }
    if (nested && holds_tensors(*nested)) return *nested;
  }
  return top;
}

}  // namespace

Result<std::vector<TensorInfo>> read_torch_pickle(std::string_view pickle,
                                                  const TorchArchive& archive) {
  if (pickle.size() > kPickleMax) {
    return fail(Code::kLimit, "data.pkl of " + std::to_string(pickle.size()) + " bytes");
  }
  PickleMachine machine(pickle);
  const Result<PickleValue> top = machine.run();
  if (!top) return tl::unexpected<Error>(top.error());
  if (top->kind != PickleKind::kDict) return fail(Code::kUnsupported, "pickle: not a dict");

  RecordsByName records;
  for (const ZipRecord& record : archive.records) records.emplace(record.name, &record);
  const std::string storage_prefix = archive.folder + "/data/";

  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string_view, size_t> positions;  // by name, in tensors
  const PickleMachine::Dict& state_dict = machine.dict(find_state_dict(machine, *top));
  for (const auto& [key, value] : state_dict) {
    if (key.kind != PickleKind::kText || value.kind != PickleKind::kTensor) continue;
    const std::string_view name = machine.text(key);
    const auto bad = [name](const Error& error) {
      return fail(error, "tensor " + in_quotes(name));
    };
    if (name.size() > kTensorNameMax) return bad({Code::kLimit, "the name is over 1024 bytes"});
    if (!is_utf8(name)) return bad({Code::kCorrupt, "the name is not UTF-8"});
    const PickleTensor& tensor = machine.tensor(value);
    const PickleStorage& storage = machine.storage(tensor);
    const auto record = records.find(storage_prefix + std::string(storage.key));
    if (record == records.end()) {
      return bad({Code::kCorrupt, "no record of storage " + in_quotes(storage.key)});
    }
    Result<TensorInfo> info = place_tensor(tensor, storage, *record->second);
    if (!info) return bad(info.error());
    info->name = name;
    // As in Python, a key that comes again keeps its place and takes the new value.
    const auto [position, is_new] = positions.try_emplace(name, tensors.size());
    if (is_new) {
      tensors.push_back(std::move(*info));
    } else {
      tensors[position->second] = std::move(*info);
    }
  }
  if (tensors.empty() && !state_dict.empty()) {
    return fail(Code::kUnsupported, "pickle: a dict without tensors");
  }
  return tensors;
}

}  // namespace nexus
