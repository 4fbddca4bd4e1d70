// Reading through the daemon: a hit is answered inline, a miss is parked until the cache has the
// bytes.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "fs/edge.h"
#include "fs/errno_of.h"
#include "fs/ring_channel.h"

namespace nexus::fs {

namespace {

// A fetched range may be evicted before it is copied; it is fetched again this often.
constexpr int kFetchTriesMax = 3;

// One buffer a thread, as large as the largest request so far. Not zeroed: it is always
// overwritten.
std::span<std::byte> thread_buffer(size_t size) {
  thread_local std::unique_ptr<std::byte[]> buffer;
  thread_local size_t capacity = 0;
  if (capacity < size) {
    buffer.reset(new std::byte[size]);
    capacity = size;
  }
  return {buffer.get(), size};
}

void reply_bytes(fuse_req_t request, std::span<const std::byte> bytes) {
  fuse_reply_buf(request, reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

void Edge::read(fuse_req_t request, size_t size, off_t offset, const fuse_file_info& info) {
  const auto* handle = reinterpret_cast<const FileHandle*>(info.fh);
  const Node& node = *handle->node;
  const auto begin = static_cast<uint64_t>(offset);
  if (offset < 0 || begin >= node.size()) return (void)fuse_reply_buf(request, nullptr, 0);
  const size_t length = std::min<uint64_t>(size, node.size() - begin);
  if (!handle->use) {
    const std::string& text = node.entry.literal;
    const size_t there = begin < text.size() ? std::min(length, text.size() - begin) : 0;
    return (void)fuse_reply_buf(request, there ? text.data() + begin : nullptr, there);
  }
  // A copy: once the request is answered the kernel may release the handle.
  const std::shared_ptr<ObjectUse> use = handle->use;
  const std::shared_ptr<const FileLayers> layers = handle->layers;
  const ByteRange range{begin, length};
  auto buffer = RingChannel::reply_space(length);
  if (buffer.size() < length) buffer = thread_buffer(length);
  if (const auto hit = cache_.try_read(*use->object, begin, buffer)) {
    if (*hit) {
      reply_bytes(request, buffer.first(**hit));
    } else {
      reply_error(request, use->object->spec().name, hit->error());
    }
  } else if (const auto parked = parking_.park(request)) {
    fetch_then_read(parked, use, range, 1);
  }
  read_ahead(*use, range);
  layer_read(layers.get(), *use, range);
}

void Edge::fetch_then_read(const std::shared_ptr<Parked>& parked,
                           const std::shared_ptr<ObjectUse>& use, ByteRange range, int tries) {
  const uint64_t step = parked->cancellation->begin_step();
  const uint64_t ticket = cache_.fetch(
      use->object, range, kDemand,
      [self = shared_from_this(), parked, use, range, tries](Result<void> fetched) {
        if (self->parking_.answered(*parked)) return;
        if (!fetched) {
          if (const auto right = self->parking_.finish(parked)) {
            self->reply_error(parked->request, use->object->spec().name, fetched.error());
          }
          return;
        }
        self->replies_.post([self, parked, use, range, tries] {
          if (self->parking_.answered(*parked)) return;
          const auto buffer = thread_buffer(range.length);
          const auto hit = self->cache_.try_read(*use->object, range.offset, buffer, true);
          if (!hit && tries < kFetchTriesMax) {
            return self->fetch_then_read(parked, use, range, tries + 1);
          }
          const auto right = self->parking_.finish(parked);
          if (!right) return;
          if (hit && *hit) return reply_bytes(parked->request, buffer.first(**hit));
          const Error gone{Code::kDisk, "evicted as fast as it is fetched: the cache is too small"};
          self->reply_error(parked->request, use->object->spec().name, hit ? hit->error() : gone);
        });
      });
  parked->cancellation->set(step, [this, ticket] { cache_.cancel(ticket); });
}

void Edge::read_ahead(ObjectUse& use, ByteRange range) {
  if (use.object->spec().whole || use.object->resident()) return;
  ByteRange ahead;
  {
    std::lock_guard lock(use.mutex);
    ahead = use.read_ahead.on_read(range, use.object->size());
  }
  if (ahead.length > 0) cache_.fetch(use.object, ahead, kReadAhead, {});
}

}  // namespace nexus::fs
