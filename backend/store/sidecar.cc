#include "backend/store/sidecar.h"

#include <xxhash.h>

#include <array>
#include <bit>
#include <cstring>

namespace nexus {

namespace {

static_assert(std::endian::native == std::endian::little, "sidecars are written in native order");

constexpr std::string_view kMagic = "NXSMETA1";
constexpr size_t kHeadBytes = 80;
constexpr size_t kTailBytes = 8;
constexpr uint32_t kFlagVerified = 1;

template <typename T>
void put(std::string& out, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out.append(raw, sizeof(T));
}

template <typename T>
T get(std::string_view bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

size_t round_up_8(size_t n) {
  return (n + 7) / 8 * 8;
}
uint64_t chunk_count(uint64_t size) {
  return size / kChunkBytes + (size % kChunkBytes != 0);
}
bool bit(const std::vector<uint64_t>& bitmap, uint64_t n) {
  return (bitmap[n / 64] >> (n % 64) & 1) != 0;
}

}  // namespace

uint64_t SidecarRecord::present_chunks() const {
  uint64_t count = 0;
  for (uint64_t word : bitmap) count += static_cast<uint64_t>(std::popcount(word));
  return count;
}

bool SidecarRecord::complete() const {
  return present_chunks() == chunk_count(meta.size);
}

std::string encode_sidecar(const SidecarRecord& record) {
  const ObjectMeta& meta = record.meta;
  const std::array<const std::string*, 4> strings = {&meta.key, &meta.model, &meta.name,
                                                     &meta.sha256};
  size_t string_bytes = 0;
  for (const std::string* s : strings) string_bytes += s->size();
  const size_t length = kHeadBytes + round_up_8(string_bytes) + record.bitmap.size() * 8 +
                        record.present_chunks() * 8 + kTailBytes;
  std::string out;
  out.reserve(length);
  out += kMagic;
  put<uint32_t>(out, meta.verified ? kFlagVerified : 0);
  put<uint32_t>(out, 0);
  put<uint64_t>(out, length);
  put<uint64_t>(out, record.generation);
  put<uint64_t>(out, meta.size);
  put<int64_t>(out, meta.last_access_ms);
  put<uint64_t>(out, meta.hits);
  put<uint64_t>(out, record.zone_bytes_written);
  for (const std::string* s : strings) put<uint32_t>(out, static_cast<uint32_t>(s->size()));
  for (const std::string* s : strings) out += *s;
  out.append(round_up_8(string_bytes) - string_bytes, '\0');
  for (uint64_t word : record.bitmap) put(out, word);
  for (uint64_t n = 0; n < record.hashes.size(); ++n) {
    if (bit(record.bitmap, n)) put(out, record.hashes[n]);
  }
  put<uint64_t>(out, XXH3_64bits(out.data(), out.size()));
  return out;
}

Result<SidecarRecord> decode_sidecar(std::string_view bytes) {
  const auto corrupt = [](const char* why) {
    return fail(Code::kCorrupt, std::string("sidecar: ") + why);
  };
  if (bytes.size() < kHeadBytes + kTailBytes) return corrupt("too short");
  if (!bytes.starts_with(kMagic)) return corrupt("not a sidecar of a known version");
  if (get<uint64_t>(bytes, 16) != bytes.size()) return corrupt("wrong length");
  const size_t body = bytes.size() - kTailBytes;
  if (get<uint64_t>(bytes, body) != XXH3_64bits(bytes.data(), body)) return corrupt("wrong hash");

  SidecarRecord record;
  ObjectMeta& meta = record.meta;
  meta.verified = (get<uint32_t>(bytes, 8) & kFlagVerified) != 0;
  record.generation = get<uint64_t>(bytes, 24);
  meta.size = get<uint64_t>(bytes, 32);
  meta.last_access_ms = get<int64_t>(bytes, 40);
  meta.hits = get<uint64_t>(bytes, 48);
  record.zone_bytes_written = get<uint64_t>(bytes, 56);

  // The hash was right, so what follows is what some version of us wrote; every length is checked
  // nevertheless, since a bug must not become a wild read.
  size_t at = kHeadBytes;
  const std::array<std::string*, 4> strings = {&meta.key, &meta.model, &meta.name, &meta.sha256};
  for (size_t i = 0; i < strings.size(); ++i) {
    const size_t length = get<uint32_t>(bytes, 64 + i * 4);
    if (length > body - at) return corrupt("a string runs past the end");
    strings[i]->assign(bytes.substr(at, length));
    at += length;
  }
  at = round_up_8(at);
  const uint64_t chunks = chunk_count(meta.size);
  const uint64_t words = chunks / 64 + (chunks % 64 != 0);
  if (at > body || words > (body - at) / 8) return corrupt("the bitmap runs past the end");
  record.bitmap.resize(words);
  for (uint64_t& word : record.bitmap) {
    word = get<uint64_t>(bytes, at);
    at += 8;
  }
  if (chunks % 64 != 0 && record.bitmap.back() >> (chunks % 64) != 0) {
    return corrupt("chunks past the end of the object");
  }
  if (record.present_chunks() != (body - at) / 8 || (body - at) % 8 != 0) {
    return corrupt("as many hashes as present chunks were expected");
  }
  record.hashes.resize(chunks);
  for (uint64_t n = 0; n < chunks; ++n) {
    if (!bit(record.bitmap, n)) continue;
    record.hashes[n] = get<uint64_t>(bytes, at);
    at += 8;
  }
  return record;
}

}  // namespace nexus
