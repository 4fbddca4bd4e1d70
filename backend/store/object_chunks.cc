// The chunks of an ObjectFile: which are there, their hashes, and what they cost their zone.
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "backend/store/object_file.h"
#include "backend/store/zones.h"

namespace nexus {

namespace {

// One megabyte a thread that ever sealed or verified a chunk: the network thread and the hash pool.
std::span<std::byte> chunk_buffer(uint64_t length) {
  thread_local std::unique_ptr<std::byte[]> buffer(new std::byte[kChunkBytes]);
  return {buffer.get(), length};
}

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

uint64_t ObjectFile::chunk_length(uint64_t chunk) const {
  if (chunk >= chunks_) return 0;
  return std::min(kChunkBytes, size_ - chunk * kChunkBytes);
}

bool ObjectFile::has(uint64_t chunk) const {
  if (chunk >= chunks_) return false;
  return (present_[chunk / 64].load(std::memory_order_acquire) >> (chunk % 64) & 1) != 0;
}

bool ObjectFile::has(ByteRange range) const {
  if (range.length == 0) return true;
  if (range.offset >= size_ || range.length > size_ - range.offset) return false;
  if (complete()) return true;
  const uint64_t last = (range.end() - 1) / kChunkBytes;
  for (uint64_t chunk = range.offset / kChunkBytes; chunk <= last; ++chunk) {
    if (!has(chunk)) return false;
  }
  return true;
}

uint64_t ObjectFile::present_bytes() const {
  if (chunks_ == 0) return 0;
  const uint64_t count = present_chunks();
  if (count == 0) return 0;
  const uint64_t missing_from_last = kChunkBytes - chunk_length(chunks_ - 1);
  return count * kChunkBytes - (has(chunks_ - 1) ? missing_from_last : 0);
}

Result<uint64_t> ObjectFile::hash_chunk(uint64_t chunk) const {
  if (chunk >= chunks_) return fail(Code::kInvalid, key_ + ": no such chunk");
  const std::span<std::byte> buffer = chunk_buffer(chunk_length(chunk));
  if (auto done = read(chunk * kChunkBytes, buffer); !done) return tl::unexpected(done.error());
  return XXH3_64bits(buffer.data(), buffer.size());
}

Result<void> ObjectFile::seal_chunk(uint64_t chunk) {
  auto hash = hash_chunk(chunk);
  if (!hash) return fail(hash.error(), "seal chunk " + std::to_string(chunk));
  mark_present(chunk, *hash);
  return {};
}

void ObjectFile::seal_chunk(uint64_t chunk, std::span<const std::byte> bytes) {
  mark_present(chunk, XXH3_64bits(bytes.data(), bytes.size()));
}

void ObjectFile::mark_present(uint64_t chunk, uint64_t hash) {
  hashes_[chunk].store(hash, std::memory_order_relaxed);
  const uint64_t bit = uint64_t{1} << (chunk % 64);
  // Release: who sees the bit sees the hash and the bytes. Of two threads that seal the same chunk
  // only the one that turned the bit counts it.
  const uint64_t before = present_[chunk / 64].fetch_or(bit, std::memory_order_acq_rel);
  if ((before & bit) != 0) return;
  charge(chunk_length(chunk));
  present_count_.fetch_add(1, std::memory_order_acq_rel);
}

Result<void> ObjectFile::verify_chunk(uint64_t chunk) const {
  if (!has(chunk)) {
    return fail(Code::kInvalid, key_ + ": chunk " + std::to_string(chunk) + " is not present");
  }
  auto hash = hash_chunk(chunk);
  if (!hash) return fail(hash.error(), "verify chunk " + std::to_string(chunk));
  if (*hash != chunk_hash(chunk)) {
    return fail(Code::kCorrupt, key_ + ": chunk " + std::to_string(chunk) + " of " + path_ +
                                    " has hash " + hex(*hash) + ", not " + hex(chunk_hash(chunk)));
  }
  return {};
}

void ObjectFile::restore(const std::vector<uint64_t>& bitmap, const std::vector<uint64_t>& hashes) {
  for (uint64_t chunk = 0; chunk < chunks_; ++chunk) {
    if (chunk / 64 >= bitmap.size() || (bitmap[chunk / 64] >> (chunk % 64) & 1) == 0) continue;
    hashes_[chunk].store(chunk < hashes.size() ? hashes[chunk] : 0, std::memory_order_relaxed);
    present_[chunk / 64].fetch_or(uint64_t{1} << (chunk % 64), std::memory_order_acq_rel);
    present_count_.fetch_add(1, std::memory_order_acq_rel);
  }
  charge(present_bytes());
}

std::vector<uint64_t> ObjectFile::bitmap() const {
  std::vector<uint64_t> words;
  words.reserve(present_.size());
  for (const auto& word : present_) words.push_back(word.load(std::memory_order_acquire));
  return words;
}

std::vector<uint64_t> ObjectFile::hashes() const {
  std::vector<uint64_t> values;
  values.reserve(hashes_.size());
  for (const auto& hash : hashes_) values.push_back(hash.load(std::memory_order_relaxed));
  return values;
}

void ObjectFile::promise(uint64_t bytes, bool preallocated) {
  preallocated_ = preallocated;
  if (!accounting_) return;
  std::lock_guard lock(charge_mutex_);
  promised_bytes_ += bytes;
  accounting_->add_promised(static_cast<int64_t>(bytes));
}

void ObjectFile::charge(uint64_t bytes) {
  if (!accounting_) return;
  std::lock_guard lock(charge_mutex_);
  if (retired()) return;
  charged_bytes_ += bytes;
  accounting_->add_used(static_cast<int64_t>(bytes));
  const uint64_t kept = std::min(bytes, promised_bytes_);
  promised_bytes_ -= kept;
  accounting_->add_promised(-static_cast<int64_t>(kept));
}

void ObjectFile::retire() {
  std::lock_guard lock(charge_mutex_);
  if (retired_.exchange(true) || !accounting_) return;
  accounting_->add_used(-static_cast<int64_t>(charged_bytes_));
  accounting_->add_promised(-static_cast<int64_t>(promised_bytes_));
  charged_bytes_ = promised_bytes_ = 0;
}

}  // namespace nexus
