// Filling: bytes from another object, hashing chunks, and the CRCs of a layer's zip.
#include <libdeflate.h>
#include <spdlog/spdlog.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
constexpr uint64_t kCopyMax = 8 << 20;  // one job on the pool; larger copies are split

std::span<std::byte> chunk_buffer() {
  static thread_local std::vector<std::byte> buffer(kChunkBytes);
  return buffer;
}

bool holds_crc_field(const ObjectLayout& layout, uint64_t chunk) {
  for (const CrcRecord& record : layout.crc_records) {
    for (const uint64_t at : record.crc_at) {
      if (at / kChunkBytes == chunk || (at + 3) / kChunkBytes == chunk) return true;
    }
  }
  return false;
}
}  // namespace

std::vector<Copy> Cache::Impl::cover(const Object& object, uint32_t file,
                                     std::vector<Piece>& pieces) const {
  std::vector<Copy> copies;
  std::vector<std::shared_ptr<Object>> siblings;
  {
    std::lock_guard lock(mutex_);
    auto it = siblings_.find(object.spec().model);
    if (it == siblings_.end()) return copies;
    for (const auto& weak : it->second) {
      auto sibling = weak.lock();
      if (sibling && sibling.get() != &object && sibling->file()) {
        siblings.push_back(std::move(sibling));
      }
    }
  }
  const uint64_t id = object.file_id(file);
  for (const auto& sibling : siblings) {
    auto from = sibling->file();
    if (!from || from->hung() || (sibling->spec().whole && !from->complete())) continue;
    if (strict() && !sibling->digest_ok_) continue;
    const auto& extents = sibling->source_extents();
    std::vector<Piece> rest;
    for (Piece piece : pieces) {
      auto extent = std::upper_bound(extents.begin(), extents.end(), std::make_pair(id, piece.src),
                                     [](const auto& at, const Object::SourceExtent& e) {
                                       return at < std::make_pair(e.file_id, e.src);
                                     });
      if (extent != extents.begin()) --extent;
      for (; piece.length > 0 && extent != extents.end(); ++extent) {
        if (extent->file_id > id ||
            (extent->file_id == id && extent->src >= piece.src + piece.length))
          break;
        if (extent->file_id < id || extent->src + extent->length <= piece.src) continue;
        if (extent->src > piece.src) {
          const uint64_t before = extent->src - piece.src;
          rest.push_back({piece.src, before, piece.dest});
          piece = {extent->src, piece.length - before, piece.dest + before};
        }
        uint64_t length = std::min(piece.length, extent->src + extent->length - piece.src);
        // Chunk by chunk: a sparse sibling holds some of it.
        while (length > 0) {
          const uint64_t at = extent->dest + (piece.src - extent->src);
          const uint64_t step = std::min(length, kChunkBytes - at % kChunkBytes);
          if (from->has(ByteRange{at, step})) {
            if (!copies.empty() && copies.back().file == from &&
                copies.back().from_offset + copies.back().length == at &&
                copies.back().dest + copies.back().length == piece.dest &&
                copies.back().length + step <= kCopyMax) {
              copies.back().length += step;
            } else {
              copies.push_back({sibling, from, at, step, piece.dest});
            }
          } else if (!rest.empty() && rest.back().src + rest.back().length == piece.src &&
                     rest.back().dest + rest.back().length == piece.dest) {
            rest.back().length += step;
          } else {
            rest.push_back({piece.src, step, piece.dest});
          }
          piece = {piece.src + step, piece.length - step, piece.dest + step};
          length -= step;
        }
      }
      if (piece.length > 0) rest.push_back(piece);
    }
    pieces = std::move(rest);
    if (pieces.empty()) break;
  }
  return copies;
}

void Cache::Impl::copy_in(const std::shared_ptr<Run>& run, const Copy& copy) {
  // The sibling's bytes are bad, or its disk does not give them: it goes, and the next try takes them from the origin.
  const auto give_up = [&](const std::string& why) {
    core_.post([this, from = copy.from, file = copy.file] {
      if (from->file() == file) drop(from);
    });
    core_.post([this, run, why] { end_run(run, fail(Code::kCancelled, why)); });
  };
  if (auto checked = check_range(*copy.from, *copy.file, {copy.from_offset, copy.length}); !checked) {
    return give_up("a copy's source was corrupt");
  }
  for (uint64_t done = 0; done < copy.length;) {
    const uint64_t step =
        std::min<uint64_t>(copy.length - done, kWriteBytes - (copy.dest + done) % kWriteBytes);
    const std::shared_ptr<std::byte[]> bytes = take_buffer();
    if (auto read = copy.file->read(copy.from_offset + done, {bytes.get(), step}); !read) {
      spdlog::warn("cache: {}; dropped", read.error().what);
      return give_up("a copy's source could not be read");
    }
    if (auto written = run->file->write(copy.dest + done, bytes, step); !written) {
      return run_failed(run, written.error());
    }
    arrived(run, copy.dest + done, step, bytes);
    done += step;
  }
}

void Cache::Impl::arrived(const std::shared_ptr<Run>& run, uint64_t dest, uint64_t length,
                          const std::shared_ptr<std::byte[]>& bytes) {
  for (uint64_t at = dest, end = dest + length; at < end;) {
    const uint64_t chunk = at / kChunkBytes;
    const uint64_t stop = std::min(end, (chunk + 1) * kChunkBytes);
    // acq_rel: whoever takes the count to zero sees every other thread's writes to the chunk.
    if (run->left[chunk - run->first].fetch_sub(stop - at, std::memory_order_acq_rel) ==
        stop - at) {
      std::span<const std::byte> whole;  // a chunk of which all came just now is not read back
      if (bytes && stop - at == run->file->chunk_length(chunk)) whole = {bytes.get() + (at - dest), stop - at};
      pool_.post([this, self = shared_from_this(), run, chunk, whole, bytes] { seal(run, chunk, whole); });
    }
    at = stop;
  }
}

void Cache::Impl::seal(const std::shared_ptr<Run>& run, uint64_t chunk, std::span<const std::byte> bytes) {
  Object& object = *run->object;
  const ObjectLayout& layout = object.spec().layout;
  if (bytes.empty()) {
    const auto buffer = chunk_buffer().first(run->file->chunk_length(chunk));
    if (auto read = run->file->read(chunk * kChunkBytes, buffer); !read) {
      return run_failed(run, read.error());
    }
    bytes = buffer;
  }
  const uint64_t begin = chunk * kChunkBytes, end = begin + bytes.size();
  for (size_t i = 0; i < layout.crc_records.size(); ++i) {
    const CrcRecord& record = layout.crc_records[i];
    const uint64_t from = std::max(begin, record.begin), to = std::min(end, record.end);
    if (from >= to) continue;
    const uint32_t crc = libdeflate_crc32(0, bytes.data() + (from - begin), to - from);
    std::lock_guard lock(run->mutex);
    run->crc_pieces[i][chunk - record.begin / kChunkBytes] = {crc, to - from};
  }
  // The chunks that hold CRC fields are sealed when those are written, so an archive is complete
  // only when it is true.
  if (!layout.crc_records.empty()) {
    const bool last = run->left_to_scan.fetch_sub(1, std::memory_order_acq_rel) == 1;
    if (!holds_crc_field(layout, chunk)) {
      run->file->seal_chunk(chunk, bytes);
      object.checked_[chunk / 64].fetch_or(1ull << (chunk % 64));
      core_.post([this, run, chunk] { chunk_sealed(run, chunk); });
    }
    if (last) finish_archive(run);
    return;
  }
  run->file->seal_chunk(chunk, bytes);
  object.checked_[chunk / 64].fetch_or(1ull << (chunk % 64));
  core_.post([this, run, chunk] { chunk_sealed(run, chunk); });
}

void Cache::Impl::finish_archive(const std::shared_ptr<Run>& run) {
  const ObjectLayout& layout = run->object->spec().layout;
  for (size_t i = 0; i < layout.crc_records.size(); ++i) {
    uLong crc = 0;
    for (const Run::CrcPiece& piece : run->crc_pieces[i]) {
      crc = crc32_combine(crc, piece.crc, static_cast<z_off_t>(piece.length));
    }
    std::byte field[4];
    for (int byte = 0; byte < 4; ++byte) {
      field[byte] = static_cast<std::byte>((crc >> (8 * byte)) & 0xff);
    }
    for (const uint64_t at : layout.crc_records[i].crc_at) {
      if (auto written = run->file->write(at, field); !written) {
        return run_failed(run, written.error());
      }
    }
  }
  for (uint64_t chunk = run->first; chunk < run->last; ++chunk) {
    if (!holds_crc_field(layout, chunk)) continue;
    if (auto sealed = run->file->seal_chunk(chunk); !sealed) return run_failed(run, sealed.error());
    run->object->checked_[chunk / 64].fetch_or(1ull << (chunk % 64));
    core_.post([this, run, chunk] { chunk_sealed(run, chunk); });
  }
}

}  // namespace nexus
