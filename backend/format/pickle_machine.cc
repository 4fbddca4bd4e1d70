#include "backend/format/pickle_machine.h"

#include <algorithm>
#include <string>

#include "backend/format/little_endian.h"

namespace nexus {
namespace {

// A state dict takes about 150 bytes of pickle and 800 of memory a tensor: 5 for 1.
constexpr uint64_t kMemoryPerByte = 32;
constexpr uint64_t kMemoryBase = 1 << 20;
constexpr uint64_t kMemoryMax = 1 << 30;

constexpr uint8_t kHighestProtocol = 5;
constexpr uint8_t kStop = '.';

std::string hex(uint8_t value) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {'0', 'x', kDigits[value >> 4], kDigits[value & 15]};
}

}  // namespace

PickleMachine::PickleMachine(std::string_view pickle)
    : pickle_(pickle),
      memory_max_(std::min(kMemoryMax, kMemoryBase + kMemoryPerByte * pickle.size())) {}

Result<PickleValue> PickleMachine::run() {
  while (true) {
    const Result<uint64_t> opcode = take_number(1);
    if (!opcode) return tl::unexpected<Error>(opcode.error());
    if (*opcode == kStop) return pop();
    const size_t depth = stack_.size();
    if (Step done = step(static_cast<uint8_t>(*opcode)); !done) {
      return tl::unexpected<Error>(done.error());
    }
    if (stack_.size() > depth) {
      if (Step paid = charge(sizeof(PickleValue)); !paid) {
        return tl::unexpected<Error>(paid.error());
      }
    }
  }
}

PickleMachine::Step PickleMachine::step(uint8_t opcode) {
  switch (opcode) {
    case 0x80: {  // PROTO
      const Result<uint64_t> protocol = take_number(1);
      if (!protocol) return tl::unexpected<Error>(protocol.error());
      if (*protocol <= kHighestProtocol) return {};
      return fail(Code::kUnsupported, "pickle protocol " + std::to_string(*protocol));
    }
    case 0x95: {  // FRAME: its length is of use to a streaming reader alone
      const Result<uint64_t> length = take_number(8);
      if (!length) return tl::unexpected<Error>(length.error());
      return {};
    }
    case 'N':  // NONE
      push(PickleKind::kNone);
      return {};
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      push(PickleKind::kBool, opcode == 0x88 ? 1 : 0);
      return {};
    case 'K':    // BININT1
    case 'M':    // BININT2
    case 'J': {  // BININT
      const Result<uint64_t> number = take_number(opcode == 'K' ? 1 : opcode == 'M' ? 2 : 4);
      if (!number) return tl::unexpected<Error>(number.error());
      const auto low = static_cast<int32_t>(static_cast<uint32_t>(*number));
      push(PickleKind::kInt, static_cast<uint64_t>(int64_t{low}));
      return {};
    }
    case 0x8A:  // LONG1
      return push_long(1);
    case 0x8B:  // LONG4
      return push_long(4);
    case 'G': {  // BINFLOAT
      const Result<uint64_t> number = take_number(8);
      if (!number) return tl::unexpected<Error>(number.error());
      push(PickleKind::kOpaque);
      return {};
    }
    case 0x8C:  // SHORT_BINUNICODE
    case 'U':   // SHORT_BINSTRING: a str of Python 2
      return push_text(1, false);
    case 'X':  // BINUNICODE
    case 'T':  // BINSTRING
      return push_text(4, false);
    case 0x8D:  // BINUNICODE8
      return push_text(8, false);
    case 'C':  // SHORT_BINBYTES
      return push_text(1, true);
    case 'B':  // BINBYTES
      return push_text(4, true);
    case 0x8E:  // BINBYTES8
    case 0x96:  // BYTEARRAY8
      return push_text(8, true);
    case 'q':    // BINPUT
    case 'r':    // LONG_BINPUT
    case 'h':    // BINGET
    case 'j': {  // LONG_BINGET
      const bool is_long = opcode == 'r' || opcode == 'j';
      const Result<uint64_t> index = take_number(is_long ? 4 : 1);
      if (!index) return tl::unexpected<Error>(index.error());
      return opcode == 'q' || opcode == 'r' ? remember(*index) : recall(*index);
    }
    case 0x94:  // MEMOIZE
      return remember(memo_.size());
    case 'c':  // GLOBAL
      return push_global_lines();
    case 0x93:  // STACK_GLOBAL
      return push_stack_global();
    case 'Q':  // BINPERSID
      return push_storage();
    case 'R':  // REDUCE
      return reduce();
    case 'b':  // BUILD
      return build();
    case 0x81:  // NEWOBJ
      return refuse_object();
    default:
      return step_container(opcode);
  }
}

PickleMachine::Step PickleMachine::step_container(uint8_t opcode) {
  switch (opcode) {
    case '(':  // MARK
      marks_.push_back(stack_.size());
      push(PickleKind::kMark);
      return {};
    case ')':  // EMPTY_TUPLE
    case ']':  // EMPTY_LIST
      return push_sequence({});
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      return push_tuple(opcode - 0x84);
    case '}':  // EMPTY_DICT
      push(PickleKind::kDict, dicts_.size());
      dicts_.emplace_back();
      return charge(sizeof(Dict));
    case 0x8F:  // EMPTY_SET
      push(PickleKind::kOpaque);
      return {};
    case '0': {  // POP
      const Result<PickleValue> value = pop();
      if (!value) return tl::unexpected<Error>(value.error());
      return {};
    }
    case 'a':    // APPEND
    case 's': {  // SETITEM
      Values items(opcode == 'a' ? 1 : 2);
      for (size_t i = items.size(); i-- > 0;) {
        const Result<PickleValue> item = pop();
        if (!item) return tl::unexpected<Error>(item.error());
        items[i] = *item;
      }
      return opcode == 'a' ? append(items) : set_items(items);
    }
    case 't':   // TUPLE
    case 'l':   // LIST
    case 'd':   // DICT
    case 'e':   // APPENDS
    case 'u':   // SETITEMS
    case '1':   // POP_MARK
    case 0x90:  // ADDITEMS
    case 0x91:  // FROZENSET
      break;
    default:
      return fail(Code::kUnsupported, "pickle opcode " + hex(opcode));
  }
  Result<Values> items = pop_to_mark();
  if (!items) return tl::unexpected<Error>(items.error());
  switch (opcode) {
    case 't':
    case 'l':
      return push_sequence(std::move(*items));
    case 'd':
      push(PickleKind::kDict, dicts_.size());
      dicts_.emplace_back();
      return set_items(*items);
    case 'e':
      return append(*items);
    case 'u':
      return set_items(*items);
    case 0x91:
      push(PickleKind::kOpaque);
      return {};
    default:
      return {};
  }
}

PickleMachine::Step PickleMachine::corrupt(std::string why) const {
  return fail(Code::kCorrupt, "pickle: " + why + " before byte " + std::to_string(at_));
}

PickleMachine::Step PickleMachine::charge(uint64_t bytes) {
  memory_ += bytes;
  if (memory_ <= memory_max_) return {};
  return fail(Code::kLimit, "pickle: over " + std::to_string(memory_max_) + " bytes of values");
}

Result<std::string_view> PickleMachine::take(uint64_t bytes) {
  if (bytes > pickle_.size() - at_) {
    return fail(Code::kCorrupt, "pickle is cut off at byte " + std::to_string(at_));
  }
  const std::string_view taken = pickle_.substr(at_, bytes);
  at_ += bytes;
  return taken;
}

Result<uint64_t> PickleMachine::take_number(size_t width) {
  const Result<std::string_view> bytes = take(width);
  if (!bytes) return tl::unexpected<Error>(bytes.error());
  return read_le(*bytes, 0, width);
}

PickleMachine::Step PickleMachine::push_text(size_t length_width, bool opaque) {
  const Result<uint64_t> length = take_number(length_width);
  if (!length) return tl::unexpected<Error>(length.error());
  const size_t begin = at_;
  const Result<std::string_view> taken = take(*length);
  if (!taken) return tl::unexpected<Error>(taken.error());
  if (opaque) {
    push(PickleKind::kOpaque);
  } else if (*length > UINT32_MAX) {
    return corrupt("a text of over 4 GiB");
  } else {
    stack_.push_back({PickleKind::kText, static_cast<uint32_t>(*length), begin});
  }
  return {};
}

PickleMachine::Step PickleMachine::push_long(size_t length_width) {
  const Result<uint64_t> length = take_number(length_width);
  if (!length) return tl::unexpected<Error>(length.error());
  const Result<std::string_view> bytes = take(*length);
  if (!bytes) return tl::unexpected<Error>(bytes.error());
  // Where it fits 64 bits and a sign; nothing that matters here is larger.
  const bool negative = !bytes->empty() && static_cast<uint8_t>(bytes->back()) >= 0x80;
  uint64_t number = negative ? UINT64_MAX : 0;
  for (size_t i = std::min<size_t>(bytes->size(), 8); i-- > 0;) {
    number = number << 8 | static_cast<uint8_t>((*bytes)[i]);
  }
  const bool fits = bytes->size() <= 8 ||
                    (bytes->size() == 9 && bytes->back() == 0 && static_cast<int64_t>(number) >= 0);
  push(fits ? PickleKind::kInt : PickleKind::kOpaque, fits ? number : 0);
  return {};
}

Result<PickleValue> PickleMachine::pop() {
  if (stack_.empty()) {
    return tl::unexpected<Error>(corrupt("a value is missing").error());
  }
  const PickleValue value = stack_.back();
  if (value.kind == PickleKind::kMark) {
    return tl::unexpected<Error>(corrupt("a mark instead of a value").error());
  }
  stack_.pop_back();
  return value;
}

Result<PickleMachine::Values> PickleMachine::pop_to_mark() {
  if (marks_.empty()) return tl::unexpected<Error>(corrupt("a mark is missing").error());
  const auto mark = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  Values values(mark + 1, stack_.end());
  stack_.erase(mark, stack_.end());
  marks_.pop_back();
  return values;
}

PickleMachine::Step PickleMachine::remember(uint64_t index) {
  if (stack_.empty() || stack_.back().kind == PickleKind::kMark) {
    return corrupt("nothing to remember");
  }
  // Pickles number from 0; each put takes 2 bytes, so an honest index is below the position.
  if (index >= at_) return fail(Code::kUnsupported, "pickle memo " + std::to_string(index));
  if (index >= memo_.size()) {
    if (Step paid = charge((index + 1 - memo_.size()) * sizeof(PickleValue)); !paid) return paid;
    memo_.resize(index + 1, PickleValue{PickleKind::kMark, 0, 0});
  }
  memo_[index] = stack_.back();
  return {};
}

PickleMachine::Step PickleMachine::recall(uint64_t index) {
  if (index >= memo_.size() || memo_[index].kind == PickleKind::kMark) {
    return corrupt("memo " + std::to_string(index) + " is empty");
  }
  stack_.push_back(memo_[index]);
  return {};
}

PickleMachine::Step PickleMachine::push_sequence(Values values) {
  if (Step paid = charge(sizeof(Values) + values.size() * sizeof(PickleValue)); !paid) return paid;
  push(PickleKind::kTuple, sequences_.size());
  sequences_.push_back(std::move(values));
  return {};
}

PickleMachine::Step PickleMachine::push_tuple(size_t length) {
  Values values(length);
  for (size_t i = length; i-- > 0;) {
    const Result<PickleValue> value = pop();
    if (!value) return tl::unexpected<Error>(value.error());
    values[i] = *value;
  }
  return push_sequence(std::move(values));
}

PickleMachine::Step PickleMachine::append(const Values& items) {
  if (stack_.empty()) return corrupt("nothing to append to");
  if (stack_.back().kind == PickleKind::kOpaque) return {};
  if (stack_.back().kind != PickleKind::kTuple) return corrupt("append to what is not a list");
  if (Step paid = charge(items.size() * sizeof(PickleValue)); !paid) return paid;
  Values& list = sequences_[stack_.back().number];
  list.insert(list.end(), items.begin(), items.end());
  return {};
}

PickleMachine::Step PickleMachine::set_items(const Values& pairs) {
  if (pairs.size() % 2 != 0) return corrupt("a key without a value");
  if (stack_.empty()) return corrupt("nothing to set items of");
  if (stack_.back().kind == PickleKind::kOpaque) return {};
  if (stack_.back().kind != PickleKind::kDict) return corrupt("items of what is not a dict");
  if (Step paid = charge(pairs.size() * sizeof(PickleValue)); !paid) return paid;
  Dict& dict = dicts_[stack_.back().number];
  for (size_t i = 0; i < pairs.size(); i += 2) dict.emplace_back(pairs[i], pairs[i + 1]);
  return {};
}

}  // namespace nexus
