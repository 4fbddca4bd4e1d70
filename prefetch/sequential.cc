#include "prefetch/sequential.h"

#include <algorithm>

namespace nexus::prefetch {

namespace {
// A stream that begins here begins at the head: before the data lies a header.
constexpr uint64_t kHeadBytes = 16 << 20;
}  // namespace

SequentialReadAhead::~SequentialReadAhead() {
  if (trusted_ && longest_ < *walked_ / 2) *walked_ = longest_;
}

ByteRange SequentialReadAhead::on_read(ByteRange range, uint64_t size) {
  ++clock_;
  // A read that starts within the window behind or just past the expected place goes on with the
  // walk: the kernel and threaded readers deliver neighbouring requests out of order.
  auto stream = std::find_if(streams_.begin(), streams_.end(), [&](const Stream& s) {
    const uint64_t slack = std::max(s.window, kWindowMin);
    return range.offset <= s.next + slack / 2 && range.end() + slack > s.next;
  });
  if (stream == streams_.end()) {
    if (streams_.size() == kStreams) {
      streams_.erase(std::min_element(streams_.begin(), streams_.end(),
                                      [](auto& a, auto& b) { return a.used < b.used; }));
    }
    streams_.push_back({range.end(), range.end(), 0, clock_, range.offset});
    return {};
  }
  stream->used = clock_;
  if (range.end() <= stream->next) return {};  // a re-read, or a straggler
  stream->next = range.end();
  stream->ahead = std::max(stream->ahead, range.end());
  const uint64_t walked = stream->next - std::min(stream->begin, stream->next);
  longest_ = std::max(longest_, walked);
  if (walked < kGlance) return {};
  uint64_t earned = walked;
  if (walked_) {
    if (*walked_ < walked) *walked_ = walked;
    if (stream->begin < kHeadBytes && walked >= kProbe && walked < *walked_) {
      earned = *walked_;
      trusted_ = true;
    }
  }
  const uint64_t most = std::clamp(2 * earned, kWindowEasy, kWindowMax);
  if (stream->window == 0) stream->window = kWindowMin;
  if (earned > walked) stream->window = most;
  const uint64_t left = stream->ahead - stream->next;
  if (left > stream->window / 2) return {};
  const uint64_t end = std::min(size, stream->next + stream->window);
  if (end <= stream->ahead) return {};
  const ByteRange ahead{stream->ahead, end - stream->ahead};
  stream->ahead = end;
  stream->window = std::min(stream->window * 2, most);
  return ahead;
}

}  // namespace nexus::prefetch
