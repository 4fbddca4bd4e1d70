// Runs: planning which requests bring missing chunks, and following them to the end.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <utility>

#include "backend/cache/impl.h"
#include "backend/net/http_client.h"

namespace nexus {

namespace {
static_assert(kPrefetch == kBackgroundPriority && kReadAhead < kBackgroundPriority);

constexpr uint64_t kPartMin = 1 << 20;
constexpr uint64_t kEndOnMin = 64 << 10;
// Of a sparse object: the more the longer the line is, see part_bytes().
constexpr uint64_t kSparsePartEasy = 4 << 20;
constexpr uint64_t kSparsePartMax = 32 << 20;
// Bytes between two pieces that are fetched and thrown away rather than asked for apart: a round
// trip costs more. The total is kept under 1/128 of the run, within the 2 % that a layer may cost.
constexpr uint64_t kGapMax = 64 << 10;
}  // namespace

Run::Run(std::shared_ptr<Object> object_, std::shared_ptr<ObjectFile> file_, uint64_t first_,
         uint64_t last_)
    : object(std::move(object_)),
      file(std::move(file_)),
      first(first_),
      last(last_),
      left(last_ - first_),
      chunks_left(last_ - first_),
      left_to_scan(last_ - first_) {
  const auto& records = object->spec().layout.crc_records;
  crc_pieces.resize(records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].end == records[i].begin) continue;
    crc_pieces[i].resize((records[i].end - 1) / kChunkBytes - records[i].begin / kChunkBytes + 1);
  }
}

Result<std::shared_ptr<ObjectFile>> Cache::Impl::ensure_file(
    const std::shared_ptr<Object>& object) {
  if (auto file = object->file()) return file;
  const ObjectLayout& layout = object->spec().layout;
  std::shared_ptr<ObjectFile> file;
  bool over_budget = false;
  if (!object->in_memory_) {
    auto created = store_.create(object->meta(), object->spec().whole);
    if (created) {
      file = *created;
    } else {
      spdlog::warn("{}: {}; kept in memory", object->spec().name, created.error().what);
      object->in_memory_ = true;
      over_budget = created.error().code == Code::kLimit;
    }
  }
  if (!file) {
    auto made = memory_file(*object);
    if (!made) {
      object->in_memory_ = false;  // the disk may take it next time
      // The daily write budget refuses an object once: a reader matters more than that.
      if (!over_budget) return made;
      auto again = store_.create(object->meta(), object->spec().whole);
      if (!again) return made;
      made = std::move(again);
    }
    file = std::move(*made);
  }
  for (const Literal& literal : layout.literals) {
    if (auto written = file->write(literal.dest, std::as_bytes(std::span(literal.bytes)));
        !written) {
      if (file->zone() < 0) return tl::unexpected<Error>(written.error());
      store_.remove(file);
      object->in_memory_ = true;  // the disk took the file but not its bytes
      return ensure_file(object);
    }
  }
  {
    std::lock_guard lock(object->mutex_);
    object->file_ = file;
    object->content_hash_.reset();
  }
  for (auto& word : object->checked_) word = 0;
  object->trusted_ = false;
  if (object->spec().whole) add_charge(*object, layout.size);
  if (layout.size == 0) completed(object, file);
  return file;
}

void Cache::Impl::start_missing(const std::shared_ptr<Object>& object, ByteRange range,
                                int priority) {
  if (!object->spec().local_path.empty()) {
    std::string error;
    if (local_file(*object, &error)) {
      advance(object);
    } else {
      object->set_error(error);
      fail_waiters(object, {0, object->size()}, Error{Code::kDisk, error});
    }
    return;
  }
  if (strict() && !blobs_ready(object, priority)) return;
  auto ensured = ensure_file(object);
  if (!ensured) {
    object->set_error(ensured.error().what);
    fail_waiters(object, range, ensured.error());
    return;
  }
  const auto& file = *ensured;
  if (file->has(range)) {
    // Only an empty range is here without a run; answer whoever waits for it.
    if (range.length == 0) core_.post([this, object] { advance(object); });
    return;
  }
  const uint64_t end = std::min(file->chunks(), (range.end() + kChunkBytes - 1) / kChunkBytes);
  const auto in_flight = [&](uint64_t chunk) {
    for (const auto& run : object->runs_) {
      if (run->file != file || chunk < run->first || chunk >= run->last) continue;
      if (priority < run->priority) {
        run->priority = priority;
        for (const auto& transfer : run->transfers) transfer->set_priority(priority);
      }
      return true;
    }
    return false;
  };
  uint64_t chunk = range.offset / kChunkBytes;
  while (chunk < end) {
    if (file->has(chunk) || in_flight(chunk)) {
      ++chunk;
      continue;
    }
    uint64_t stop = chunk + 1;
    while (stop < end && !file->has(stop) && !in_flight(stop)) ++stop;
    start_run(object, file, chunk, stop, priority);
    if (object->file() != file) return;  // it failed at once and was dropped
    chunk = stop;
  }
}

LinkShape Cache::Impl::link_of(const Object& object) const {
  LinkShape link{options_.max_connections, kPartBytesMost};
  if (options_.links.empty() || !object.spec().source) return link;
  const auto known = options_.links.find(object.spec().source->origin->describe());
  if (known == options_.links.end()) return link;
  link.connections = std::max(1, known->second.connections);
  if (known->second.part_bytes > 0) {
    link.part_bytes = std::clamp(known->second.part_bytes, kPartBytesLeast, kPartBytesMost);
  }
  return link;
}

// `total` is cut into as many as there are connections, since each may be limited by itself, or into several times as
// many: an uneven last round would leave connections idle. A sparse object's parts are no larger than the line asks for,
// since a reader needs them in turn.
uint64_t Cache::Impl::part_bytes(uint64_t total, bool whole, const LinkShape& link) const {
  const auto connections = static_cast<uint64_t>(link.connections);
  uint64_t most = link.part_bytes;
  if (!whole) {
    if (total < 2 * kSparsePartEasy) return kSparsePartEasy;  // a read, not a window
    const uint64_t measured = options_.request_bytes ? options_.request_bytes() : 0;
    most = std::min({most, kSparsePartMax, std::max(measured, kSparsePartEasy)});
  }
  const uint64_t rounds = (total + connections * most - 1) / (connections * most);
  return std::max(kPartMin, total / std::max<uint64_t>(1, connections * rounds));
}

void Cache::Impl::start_run(const std::shared_ptr<Object>& object,
                            const std::shared_ptr<ObjectFile>& file, uint64_t first, uint64_t last,
                            int priority) {
  auto run = std::make_shared<Run>(object, file, first, last);
  run->priority = priority;
  object->runs_.push_back(run);
  if (!object->fetching_) {
    object->rate_since_ = std::chrono::steady_clock::now();
    object->rate_bytes_ = 0;
  }
  set_fetching(*object);

  // Every extent's share of the run, by origin file and place in it.
  const uint64_t begin = first * kChunkBytes;
  const uint64_t end = std::min(last * kChunkBytes, file->size());
  std::map<uint32_t, std::vector<Piece>> wanted;
  const auto& extents = object->spec().layout.extents;
  auto extent = std::upper_bound(extents.begin(), extents.end(), begin,
                                 [](uint64_t at, const Extent& e) { return at < e.dest; });
  if (extent != extents.begin()) --extent;
  uint64_t total = 0;
  for (; extent != extents.end() && extent->dest < end; ++extent) {
    const uint64_t from = std::max(begin, extent->dest);
    const uint64_t to = std::min(end, extent->dest + extent->length);
    if (from >= to) continue;
    wanted[extent->file].push_back({extent->src + (from - extent->dest), to - from, from});
    total += to - from;
    for (uint64_t at = from; at < to;) {
      const uint64_t stop = std::min(to, (at / kChunkBytes + 1) * kChunkBytes);
      run->left[at / kChunkBytes - first] += stop - at;
      at = stop;
    }
  }
  // Chunks of padding and literals alone have nothing to wait for.
  for (uint64_t chunk = first; chunk < last; ++chunk) {
    if (run->left[chunk - first] == 0) {
      pool_.post([this, self = shared_from_this(), run, chunk] { seal(run, chunk); });
    }
  }
  uint64_t to_ask = 0;
  for (auto& [origin_file, pieces] : wanted) {
    for (const Copy& copy : cover(*object, origin_file, pieces)) {
      pool_.post([this, self = shared_from_this(), run, copy] { copy_in(run, copy); });
    }
    if (!pieces.empty() && strict() && !object->spec().headers.empty()) {
      // The verified blob was evicted between the check and here.
      core_.post([this, run] {
        run->object->digest_ok_ = false;
        end_run(run, fail(Code::kCancelled, "strict: a source went away"));
      });
      return;
    }
    std::sort(pieces.begin(), pieces.end(), [](auto& a, auto& b) { return a.src < b.src; });
    for (const Piece& piece : pieces) to_ask += piece.length;
  }
  const uint64_t step = part_bytes(to_ask, object->spec().whole, link_of(*object));
  // Parts end where a write or a chunk does, so that few are cut, unless that made them unequal: the longest one decides.
  const uint64_t end_on =
      std::clamp(std::bit_floor(step / 16), object->spec().whole ? kEndOnMin : kChunkBytes, kWriteBytes);
  uint64_t gap_budget = to_ask / 128;
  uint64_t asked = 0, end_near = 0;
  std::vector<Part> parts;
  for (const auto& [origin_file, pieces] : wanted) {
    Part part;
    bool full = false;
    const auto flush = [&] {
      full = false;
      if (!part.pieces.empty()) parts.push_back(std::move(part));
      part = Part{};
    };
    for (Piece piece : pieces) {
      while (piece.length > 0) {
        if (!part.pieces.empty()) {
          const uint64_t gap = piece.src - std::min(piece.src, part.range.end());
          const bool repeats = piece.src < part.range.end();  // the same bytes at two places
          if (repeats || full || gap > kGapMax || gap > gap_budget) {
            flush();
          } else {
            gap_budget -= gap;
          }
        }
        if (part.pieces.empty()) {
          part.file = origin_file;
          part.range = {piece.src, 0};
          // The n-th part ends near n * step, however the ones before it were rounded or cut.
          end_near = ((asked + step / 2) / step + 1) * step;
        }
        const uint64_t due = end_near - asked;
        uint64_t take = piece.length;
        if (take + end_on / 2 >= due && end_near + step / 2 < to_ask) {
          take = std::min(take, (piece.dest + due + end_on / 2) / end_on * end_on - piece.dest);
          full = true;
        }
        asked += take;
        part.pieces.push_back({piece.src, take, piece.dest});
        part.range.length = piece.src + take - part.range.offset;
        piece.src += take;
        piece.dest += take;
        piece.length -= take;
      }
    }
    flush();
  }
  if (priority >= kFill) {
    int64_t never = 0;
    object->last_access_ms_.compare_exchange_strong(never, 1);
  } else if (priority >= kPrefetch) {
    for (const Part& part : parts) run->prefetch_bytes += part.range.length;
    if (run->prefetch_bytes > 0) {
      object->prefetched_.add({begin, end - begin}, run->prefetch_bytes);
      prefetch_issued_ += run->prefetch_bytes;
      touch(*object);
    }
  }
  for (Part& part : parts) {
    if (run->ended) return;
    start_part(run, std::move(part));
  }
}

void Cache::Impl::start_part(const std::shared_ptr<Run>& run, Part part) {
  const auto& source = run->object->spec().source;
  ReadRequest request;
  request.file = source->snapshot.files[part.file];
  request.range = part.range;
  request.priority = run->priority;
  request.flow = run->object->id();
  const bool remote = request.file.local_path.empty();
  if (run->object->spec().whole || run->priority != kDemand) part.write_bytes = kWriteBytes;
  auto shared = std::make_shared<Part>(std::move(part));
  shared->at = shared->range.offset;
  request.sink = [self = shared_from_this(), run, shared, remote](
                     uint64_t offset, std::span<const std::byte> bytes) -> Result<void> {
    if (remote) self->downloaded_.fetch_add(bytes.size(), std::memory_order_relaxed);
    const uint64_t end = offset + bytes.size();
    // Bytes twice would be counted twice, and a chunk sealed before it is whole.
    if (offset != shared->at || end > shared->range.end()) {
      return fail(Code::kOrigin, run->object->spec().name + ": bytes at " + std::to_string(offset) +
                                     " where those at " + std::to_string(shared->at) + " were due");
    }
    shared->at = end;
    while (shared->next < shared->pieces.size()) {
      const Piece& piece = shared->pieces[shared->next];
      const uint64_t from = std::max(offset, piece.src);
      const uint64_t to = std::min(end, piece.src + piece.length);
      if (from < to) {
        const uint64_t dest = piece.dest + (from - piece.src);
        auto landed = self->land(run, *shared, dest, bytes.subspan(from - offset, to - from));
        if (!landed) return landed;
      }
      if (end < piece.src + piece.length) break;
      ++shared->next;
    }
    return end == shared->range.end() ? self->write_gathered(run, *shared) : Result<void>();
  };
  request.on_done = [self = shared_from_this(), run, shared](Result<void> result) {
    // A run that we cancelled has ended and ignores this; one that the origin cancelled begins
    // anew.
    if (!result) {
      (void)self->write_gathered(run, *shared);  // a chunk may be whole
      return self->run_failed(run, result.error());
    }
    if (shared->at != shared->range.end()) {
      self->run_failed(run,
                       Error{Code::kOrigin, run->object->spec().name + ": too few bytes came"});
    }
  };
  run->transfers.push_back(source->origin->read(source->snapshot, std::move(request)));
}

void Cache::Impl::settle_prefetch(Run& run) {
  const uint64_t asked = std::exchange(run.prefetch_bytes, 0);
  const uint64_t begin = run.first * kChunkBytes;
  const uint64_t end = std::min(run.last * kChunkBytes, run.file->size());
  if (asked == 0 || run.object->prefetched_.remove({begin, end - begin}) == 0) return;
  uint64_t left = 0;
  for (const auto& missing : run.left) left += missing;
  const uint64_t came = asked - std::min(asked, left - std::min(left, run.gathered.load()));
  prefetch_issued_ -= asked - came;
  if (came == 0) return;
  if (run.object->spec().whole) {
    prefetch_wasted_ += came;
  } else {
    run.object->prefetched_.add({begin, end - begin}, came);  // its chunks stay
  }
}

void Cache::Impl::run_failed(const std::shared_ptr<Run>& run, Error error) {
  core_.post([this, run, error = std::move(error)] { end_run(run, tl::unexpected<Error>(error)); });
}

void Cache::Impl::chunk_sealed(const std::shared_ptr<Run>& run, uint64_t chunk) {
  Object& object = *run->object;
  const uint64_t length = run->file->chunk_length(chunk);
  const bool current = object.file() == run->file;
  // Also of a run that was cancelled while the chunk was hashed: the bytes are on the disk.
  if (!object.spec().whole && current) add_charge(object, length);
  if (run->ended) {
    if (current && run->file->complete()) completed(run->object, run->file);
    return advance(run->object);
  }
  object.rate_bytes_ += length;
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - object.rate_since_).count();
  if (seconds >= 0.5) {
    object.rate_ = static_cast<double>(object.rate_bytes_) / seconds;
    object.rate_bytes_ = 0;
    object.rate_since_ = now;
  }
  if (run->chunks_left.fetch_sub(1) == 1) {
    end_run(run, {});
  } else if (!object.waiters_.empty() && !object.spec().whole) {
    advance(run->object);
  }
  evict();
}

void Cache::Impl::completed(const std::shared_ptr<Object>& object,
                            const std::shared_ptr<ObjectFile>& file) {
  if (std::exchange(object->completed_, true)) return;  // by another run's end
  bool checked = true;
  for (uint64_t chunk = 0; chunk < file->chunks() && checked; ++chunk) {
    checked = (object->checked_[chunk / 64] >> (chunk % 64)) & 1;
  }
  if (checked) object->trusted_ = true;
  if (file->zone() >= 0) store_.checkpoint(file, object->meta());
  if (!object->spec().sha256.empty() && !object->digest_ok_) check_digest(object);
  if (listener_) listener_(object);
}

}  // namespace nexus
