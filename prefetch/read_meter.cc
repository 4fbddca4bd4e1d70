#include "prefetch/read_meter.h"

#include <algorithm>

namespace nexus::prefetch {

namespace {
uint64_t bytes_of_layer(const LayerSpans& spans, int layer) {
  uint64_t bytes = 0;
  for (const LayerSpan& span : spans) {
    if (span.layer == layer) bytes += span.end - span.begin;
  }
  return bytes;
}
}  // namespace

std::vector<int> ReadMeter::on_read(const LayerSpans& spans, ByteRange range) {
  std::vector<int> reached;
  ++clock_;
  auto span = std::upper_bound(spans.begin(), spans.end(), range.offset,
                               [](uint64_t at, const LayerSpan& s) { return at < s.end; });
  for (; span != spans.end() && span->begin < range.end(); ++span) {
    const uint64_t from = std::max(range.offset, span->begin);
    const uint64_t bytes = std::min(range.end(), span->end) - from;
    auto reading = std::find_if(readings_.begin(), readings_.end(),
                                [&](const Reading& r) { return r.layer == span->layer; });
    if (reading == readings_.end()) {
      if (readings_.size() == kLayersMax) {
        readings_.erase(std::min_element(readings_.begin(), readings_.end(),
                                         [](auto& a, auto& b) { return a.used < b.used; }));
      }
      readings_.push_back({span->layer, 0, false, clock_});
      reading = std::prev(readings_.end());
    }
    reading->used = clock_;
    if (reading->announced) continue;
    reading->bytes += bytes;
    if (reading->bytes >= kProbeBytes || reading->bytes * 2 >= bytes_of_layer(spans, span->layer)) {
      reading->announced = true;
      reached.push_back(span->layer);
    }
  }
  return reached;
}

}  // namespace nexus::prefetch
