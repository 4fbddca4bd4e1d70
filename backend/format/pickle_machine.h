// A restricted pickle machine: it builds plain values, and of all globals only those that
// torch.save of a state dict names mean something. Nothing is imported or called. Time and memory
// are bounded by the input's length. One thread. Source: Python's pickletools.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/base/error.h"
#include "backend/format/tensor.h"

namespace nexus {

enum class PickleKind : uint8_t {
  kMark,
  kNone,
  kBool,
  kInt,      // number
  kText,     // bytes of the pickle itself
  kGlobal,   // globals
  kTuple,    // sequences; lists too
  kDict,     // dicts
  kStorage,  // storages
  kTensor,   // tensors
  kOpaque,   // a value of no interest (float, bytes, device)
};

struct PickleValue {
  PickleKind kind = PickleKind::kNone;
  uint32_t length = 0;  // of a text
  uint64_t number = 0;  // an int's two's complement, a text's offset, else the index in its pool
};

struct PickleGlobal {
  std::string_view module;
  std::string_view name;
};

struct PickleStorage {
  Dtype dtype = Dtype::kU8;  // of a typed storage
  bool typed = false;
  std::string_view key;
  uint64_t elements = 0;  // bytes where it is untyped
};

// A tensor over a storage, before the archive says where that lies.
struct PickleTensor {
  uint32_t storage = 0;
  Dtype dtype = Dtype::kU8;
  uint64_t offset = 0;  // in elements
  std::vector<uint64_t> shape;
  std::vector<uint64_t> stride;
};

class PickleMachine {
 public:
  using Dict = std::vector<std::pair<PickleValue, PickleValue>>;

  // `pickle` must outlive the machine.
  explicit PickleMachine(std::string_view pickle);

  // Runs to STOP and returns the value left. kCorrupt where the pickle is broken, kUnsupported
  // where it is more than this machine knows, kLimit where it would take too much memory. Call
  // once.
  Result<PickleValue> run();

  std::string_view text(const PickleValue& value) const {
    return pickle_.substr(value.number, value.length);
  }
  const Dict& dict(const PickleValue& value) const { return dicts_[value.number]; }
  const PickleTensor& tensor(const PickleValue& value) const { return tensors_[value.number]; }
  const PickleStorage& storage(const PickleTensor& tensor) const {
    return storages_[tensor.storage];
  }

 private:
  using Values = std::vector<PickleValue>;
  using Step = Result<void>;

  Step step(uint8_t opcode);
  Step step_container(uint8_t opcode);

  Step corrupt(std::string why) const;
  Step charge(uint64_t bytes);
  Result<std::string_view> take(uint64_t bytes);
  Result<uint64_t> take_number(size_t width);
  Step push_text(size_t length_width, bool opaque);
  Step push_long(size_t length_width);
  void push(PickleKind kind, uint64_t number = 0) { stack_.push_back({kind, 0, number}); }
  Result<PickleValue> pop();
  // Everything above the topmost mark; the mark goes too.
  Result<Values> pop_to_mark();

  Step remember(uint64_t index);
  Step recall(uint64_t index);
  Step push_sequence(Values values);
  Step push_tuple(size_t length);
  Step append(const Values& items);
  Step set_items(const Values& pairs);
  Step push_global_lines();
  Step push_global(std::string_view module, std::string_view name);
  Step push_stack_global();

  Step push_storage();
  Step reduce();
  Step call(const PickleGlobal& function, const Values& arguments);
  Step call_ordered_dict(const Values& arguments);
  Step call_rebuild_tensor(const PickleGlobal& function, const Values& arguments);
  Step build();
  Step refuse_object() const;
  bool read_sizes(const PickleValue& value, std::vector<uint64_t>& sizes) const;

  const std::string_view pickle_;
  const uint64_t memory_max_;
  uint64_t memory_ = 0;
  size_t at_ = 0;
  Values stack_;
  std::vector<size_t> marks_;  // positions of marks in stack_
  std::vector<PickleValue> memo_;
  std::vector<Values> sequences_;
  std::vector<Dict> dicts_;
  std::vector<PickleGlobal> globals_;
  std::vector<PickleStorage> storages_;
  std::vector<PickleTensor> tensors_;
};

}  // namespace nexus
