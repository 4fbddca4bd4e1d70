// The part of PickleMachine that knows torch: globals, storages and what REDUCE would call.
#include <algorithm>
#include <array>

#include "backend/format/pickle_machine.h"
#include "backend/format/text.h"
#include "backend/format/torch_dtype.h"

namespace nexus {
namespace {

// Bounds on what one short REDUCE or BINPERSID can make, whose arguments a memo may repeat.
constexpr size_t kRankMax = 64;
constexpr size_t kStorageKeyMax = 256;

// Calls whose result is of no interest here, and harmless to skip.
constexpr std::array kOpaqueCalls = {
    PickleGlobal{"torch", "device"},
    PickleGlobal{"torch", "Size"},
    PickleGlobal{"collections", "Counter"},
    PickleGlobal{"_codecs", "encode"},
    PickleGlobal{"__builtin__", "set"},  // how protocol 2 spells builtins
    PickleGlobal{"__builtin__", "complex"},
    PickleGlobal{"builtins", "set"},
    PickleGlobal{"builtins", "complex"},
    PickleGlobal{"numpy", "dtype"},
    PickleGlobal{"numpy.core.multiarray", "scalar"},
    PickleGlobal{"numpy._core.multiarray", "scalar"},
};

bool is(const PickleGlobal& global, std::string_view module, std::string_view name) {
  return global.module == module && global.name == name;
}

std::string dotted(const PickleGlobal& global) {
  constexpr size_t kShown = 60;  // a name may be as long as the pickle
  return in_quotes(std::string(global.module.substr(0, kShown)) + "." +
                   std::string(global.name.substr(0, kShown)));
}

}  // namespace

PickleMachine::Step PickleMachine::push_global_lines() {
  std::array<std::string_view, 2> lines;
  for (std::string_view& line : lines) {
    const size_t end = pickle_.find('\n', at_);
    if (end == std::string_view::npos) return corrupt("a global is cut off");
    line = pickle_.substr(at_, end - at_);
    at_ = end + 1;
  }
  return push_global(lines[0], lines[1]);
}

PickleMachine::Step PickleMachine::push_global(std::string_view module, std::string_view name) {
  push(PickleKind::kGlobal, globals_.size());
  globals_.push_back({module, name});
  return charge(sizeof(PickleGlobal));
}

PickleMachine::Step PickleMachine::push_stack_global() {
  const Result<PickleValue> name = pop();
  if (!name) return tl::unexpected<Error>(name.error());
  const Result<PickleValue> module = pop();
  if (!module) return tl::unexpected<Error>(module.error());
  if (name->kind != PickleKind::kText || module->kind != PickleKind::kText) {
    return corrupt("a global without a name");
  }
  return push_global(text(*module), text(*name));
}

// The persistent id ("storage", class, key, location, elements).
PickleMachine::Step PickleMachine::push_storage() {
  const Result<PickleValue> id = pop();
  if (!id) return tl::unexpected<Error>(id.error());
  if (id->kind != PickleKind::kTuple) return corrupt("a persistent id that is not a tuple");
  const Values& parts = sequences_[id->number];
  if (parts.size() != 5 || parts[0].kind != PickleKind::kText || text(parts[0]) != "storage" ||
      parts[1].kind != PickleKind::kGlobal || parts[2].kind != PickleKind::kText ||
      parts[2].length > kStorageKeyMax || parts[4].kind != PickleKind::kInt ||
      static_cast<int64_t>(parts[4].number) < 0) {
    return fail(Code::kUnsupported, "pickle: a persistent id that is not a torch storage's");
  }
  const PickleGlobal& type = globals_[parts[1].number];
  PickleStorage storage;
  storage.key = text(parts[2]);
  storage.elements = parts[4].number;
  const std::optional<Dtype> dtype = dtype_from_torch_storage(type.name);
  if (dtype && (type.module == "torch" || type.module == "torch.cuda")) {
    storage.dtype = *dtype;
    storage.typed = true;
  } else if (!is(type, "torch.storage", "UntypedStorage") && !is(type, "torch", "UntypedStorage")) {
    return fail(Code::kUnsupported, "pickle: storage of class " + dotted(type));
  }
  push(PickleKind::kStorage, storages_.size());
  storages_.push_back(storage);
  return charge(sizeof(PickleStorage));
}

PickleMachine::Step PickleMachine::reduce() {
  const Result<PickleValue> arguments = pop();
  if (!arguments) return tl::unexpected<Error>(arguments.error());
  const Result<PickleValue> function = pop();
  if (!function) return tl::unexpected<Error>(function.error());
  if (function->kind != PickleKind::kGlobal) {
    return fail(Code::kUnsupported, "pickle: a call of what is not a global");
  }
  if (arguments->kind != PickleKind::kTuple) return corrupt("arguments that are not a tuple");
  const PickleGlobal global = globals_[function->number];
  // torch.Tensor with attributes and Parameters wrap the call that makes the tensor itself:
  // (function, type, arguments, state).
  if (is(global, "torch._tensor", "_rebuild_from_type_v2")) {
    const Values& wrapped = sequences_[arguments->number];
    if (wrapped.size() != 4 || wrapped[0].kind != PickleKind::kGlobal ||
        wrapped[1].kind != PickleKind::kGlobal || wrapped[2].kind != PickleKind::kTuple) {
      return corrupt("arguments of " + dotted(global));
    }
    const PickleGlobal& type = globals_[wrapped[1].number];
    if (!is(type, "torch", "Tensor") && !is(type, "torch.nn.parameter", "Parameter") &&
        !is(type, "torch.nn.parameter", "Buffer")) {
      return fail(Code::kUnsupported, "pickle: tensor of type " + dotted(type));
    }
    return call(globals_[wrapped[0].number], sequences_[wrapped[2].number]);
  }
  // No copy: a memo lets a few bytes pass long arguments again and again. No call adds sequences.
  return call(global, sequences_[arguments->number]);
}

PickleMachine::Step PickleMachine::call(const PickleGlobal& function, const Values& arguments) {
  if (function.module == "torch._utils") {
    if (function.name == "_rebuild_parameter" || function.name == "_rebuild_parameter_with_state") {
      if (arguments.empty() || arguments[0].kind != PickleKind::kTensor) {
        return corrupt("a parameter without its tensor");
      }
      stack_.push_back(arguments[0]);
      return {};
    }
    if (function.name == "_rebuild_tensor" || function.name == "_rebuild_tensor_v2" ||
        function.name == "_rebuild_tensor_v3") {
      return call_rebuild_tensor(function, arguments);
    }
  }
  if (is(function, "collections", "OrderedDict")) return call_ordered_dict(arguments);
  for (const PickleGlobal& known : kOpaqueCalls) {
    if (is(function, known.module, known.name)) {
      push(PickleKind::kOpaque);
      return {};
    }
  }
  return fail(Code::kUnsupported, "pickle: global " + dotted(function));
}

// OrderedDict() or, from Python 2, OrderedDict([[key, value], ..]).
PickleMachine::Step PickleMachine::call_ordered_dict(const Values& arguments) {
  Values pairs;
  if (arguments.size() > 1) return corrupt("arguments of an OrderedDict");
  if (arguments.size() == 1) {
    if (arguments[0].kind != PickleKind::kTuple) return corrupt("items of an OrderedDict");
    for (const PickleValue& item : sequences_[arguments[0].number]) {
      if (item.kind != PickleKind::kTuple || sequences_[item.number].size() != 2) {
        return corrupt("items of an OrderedDict");
      }
      const Values& pair = sequences_[item.number];
      pairs.insert(pairs.end(), pair.begin(), pair.end());
    }
  }
  push(PickleKind::kDict, dicts_.size());
  dicts_.emplace_back();
  if (Step paid = charge(sizeof(Dict)); !paid) return paid;
  return set_items(pairs);
}

// _rebuild_tensor:    storage, offset, size, stride
// _rebuild_tensor_v2: the same, requires_grad, hooks, [metadata]
// _rebuild_tensor_v3: the same, requires_grad, hooks, dtype, [metadata]
PickleMachine::Step PickleMachine::call_rebuild_tensor(const PickleGlobal& function,
                                                       const Values& arguments) {
  const bool v3 = function.name == "_rebuild_tensor_v3";
  const size_t needed = v3 ? 7 : function.name == "_rebuild_tensor_v2" ? 6 : 4;
  const size_t allowed = needed == 4 ? 4 : needed + 1;
  PickleTensor tensor;
  if (arguments.size() < needed || arguments.size() > allowed ||
      arguments[0].kind != PickleKind::kStorage || arguments[1].kind != PickleKind::kInt ||
      static_cast<int64_t>(arguments[1].number) < 0 || !read_sizes(arguments[2], tensor.shape) ||
      !read_sizes(arguments[3], tensor.stride) || tensor.shape.size() != tensor.stride.size()) {
    return corrupt("arguments of " + dotted(function));
  }
  if (arguments.size() > needed) {
    // A conjugated or negated view: its bytes are not its values.
    const PickleValue& metadata = arguments[needed];
    const bool empty = metadata.kind == PickleKind::kNone ||
                       (metadata.kind == PickleKind::kDict && dicts_[metadata.number].empty());
    if (!empty) return fail(Code::kUnsupported, "pickle: a tensor with metadata");
  }
  const PickleStorage& storage = storages_[arguments[0].number];
  tensor.storage = static_cast<uint32_t>(arguments[0].number);
  tensor.offset = arguments[1].number;
  tensor.dtype = storage.dtype;
  if (v3) {
    if (arguments[6].kind != PickleKind::kGlobal) return corrupt("a tensor without a dtype");
    const PickleGlobal& global = globals_[arguments[6].number];
    const std::optional<Dtype> dtype = dtype_from_torch_name(global.name);
    if (!dtype || global.module != "torch") {
      return fail(Code::kUnsupported, "pickle: dtype " + dotted(global));
    }
    tensor.dtype = *dtype;
  } else if (!storage.typed) {
    return fail(Code::kUnsupported, "pickle: a tensor over an untyped storage");
  }
  if (Step paid = charge(sizeof(PickleTensor) + tensor.shape.size() * 2 * sizeof(uint64_t));
      !paid) {
    return paid;
  }
  push(PickleKind::kTensor, tensors_.size());
  tensors_.push_back(std::move(tensor));
  return {};
}

bool PickleMachine::read_sizes(const PickleValue& value, std::vector<uint64_t>& sizes) const {
  if (value.kind != PickleKind::kTuple) return false;
  const Values& values = sequences_[value.number];
  if (values.size() > kRankMax) return false;
  for (const PickleValue& size : values) {
    if (size.kind != PickleKind::kInt || static_cast<int64_t>(size.number) < 0) return false;
    sizes.push_back(size.number);
  }
  return true;
}

// NEWOBJ makes an instance of the class below its arguments; no class is known here.
PickleMachine::Step PickleMachine::refuse_object() const {
  if (stack_.size() < 2 || stack_[stack_.size() - 2].kind != PickleKind::kGlobal) {
    return corrupt("an object without a class");
  }
  const PickleGlobal& global = globals_[stack_[stack_.size() - 2].number];
  return fail(Code::kUnsupported, "pickle: object of class " + dotted(global));
}

// Attributes of what is below: a state dict's _metadata. Nothing that is kept here has any.
PickleMachine::Step PickleMachine::build() {
  const Result<PickleValue> state = pop();
  if (!state) return tl::unexpected<Error>(state.error());
  if (stack_.empty()) return corrupt("attributes of nothing");
  const PickleKind kind = stack_.back().kind;
  if (kind == PickleKind::kDict || kind == PickleKind::kOpaque) return {};
  return fail(Code::kUnsupported, "pickle: attributes of what is not a dict");
}

}  // namespace nexus
