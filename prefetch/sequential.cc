#include "prefetch/sequential.h"

#include <algorithm>

namespace nexus::prefetch {

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
  if (stream->window == 0) stream->window = kWindowMin;
  const uint64_t left = stream->ahead - stream->next;
  if (left > stream->window / 2) return {};
  const uint64_t end = std::min(size, stream->next + stream->window);
  if (end <= stream->ahead) return {};
  const ByteRange ahead{stream->ahead, end - stream->ahead};
  stream->ahead = end;
  const uint64_t walked = stream->next - std::min(stream->begin, stream->next);
  stream->window = std::min(stream->window * 2, std::clamp(walked / 2, kWindowEasy, kWindowMax));
  return ahead;
}

}  // namespace nexus::prefetch
