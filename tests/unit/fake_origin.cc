#include "tests/unit/fake_origin.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

namespace nexus::test {

namespace {

std::string digest_hex(const EVP_MD* kind, const std::string& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &length, kind, nullptr);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) {
    hex += "0123456789abcdef"[digest[i] >> 4];
    hex += "0123456789abcdef"[digest[i] & 15];
  }
  return hex;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

uint64_t le(const std::string& bytes, size_t at, int width) {
  uint64_t value = 0;
  for (int i = width - 1; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes.at(at + i));
  return value;
}

}  // namespace

std::string random_bytes(size_t size, uint64_t seed) {
  std::string bytes(size, '\0');
  uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;
  for (size_t i = 0; i < size; i += 8) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    std::memcpy(bytes.data() + i, &x, std::min<size_t>(8, size - i));
  }
  return bytes;
}

std::string sha256_hex(const std::string& bytes) {
  return digest_hex(EVP_sha256(), bytes);
}

std::string git_oid(const std::string& bytes) {
  return digest_hex(EVP_sha1(), "blob " + std::to_string(bytes.size()) + '\0' + bytes);
}

void pass_a_millisecond() {
  const auto now = [] {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::system_clock::now().time_since_epoch());
  };
  for (const auto begin = now(); now() <= begin;) std::this_thread::yield();
}

FakeTransfer::FakeTransfer(ReadRequest request, std::string bytes, ThreadPool& threads)
    : path_(request.file.path),
      range_(request.range),
      bytes_(std::move(bytes)),
      threads_(threads),
      priority_(request.priority),
      request_(std::move(request)) {}

void FakeTransfer::cancel() {
  cancelled_ = true;
  threads_.post([self = shared_from_this()] {
    std::lock_guard lock(self->mutex_);
    self->end(nexus::fail(Code::kCancelled, "cancelled"));
  });
}

bool FakeTransfer::over() {
  std::lock_guard lock(mutex_);
  return over_;
}

void FakeTransfer::end(Result<void> result) {
  if (std::exchange(over_, true)) return;
  const auto done = std::move(request_.on_done);
  request_.sink = nullptr;  // frees what the cache keeps alive through it
  done(std::move(result));
}

void FakeTransfer::deliver(uint64_t length) {
  std::lock_guard lock(mutex_);
  length = std::min(length, range_.length - delivered_);
  // In pieces, as a network delivers.
  while (length > 0 && !over_ && !cancelled_) {
    const uint64_t step = std::min<uint64_t>(length, 100'000);
    auto sunk =
        request_.sink(range_.offset + delivered_, bytes_of(bytes_).subspan(delivered_, step));
    if (!sunk) return end(std::move(sunk));
    delivered_ += step;
    length -= step;
  }
}

void FakeTransfer::finish() {
  deliver(range_.length);
  std::lock_guard lock(mutex_);
  if (delivered_ == range_.length) end({});
}

void FakeTransfer::fail(Code code, const std::string& what) {
  std::lock_guard lock(mutex_);
  end(nexus::fail(code, what));
}

Result<void> FakeTransfer::deliver_bytes(uint64_t offset, const std::string& bytes) {
  std::lock_guard lock(mutex_);
  if (over_) return {};
  auto sunk = request_.sink(offset, bytes_of(bytes));
  if (!sunk) end(sunk);
  return sunk;
}

void FakeTransfer::claim_success() {
  std::lock_guard lock(mutex_);
  end({});
}

void FakeOrigin::put(const std::string& path, FakeFile file) {
  std::lock_guard lock(mutex_);
  files_[path] = std::move(file);
}

void FakeOrigin::put(const std::string& path, std::string bytes, bool with_sha256) {
  FakeFile file;
  file.etag = sha256_hex(bytes);
  if (with_sha256) file.sha256 = file.etag;
  file.bytes = std::move(bytes);
  put(path, std::move(file));
}

FakeFile FakeOrigin::file(const std::string& path) const {
  std::lock_guard lock(mutex_);
  return files_.at(path);
}

Snapshot FakeOrigin::snapshot(const std::string& commit) const {
  std::lock_guard lock(mutex_);
  return snapshot_locked(commit);
}

Snapshot FakeOrigin::snapshot_locked(const std::string& commit) const {
  Snapshot snapshot;
  snapshot.repo = repo_;
  snapshot.revision = "main";
  snapshot.commit = commit;
  for (const auto& [path, file] : files_) {
    OriginFile entry;
    entry.path = path;
    entry.size = file.bytes.size();
    entry.etag = file.etag;
    entry.sha256 = file.sha256;
    entry.local_path = file.local_path;
    snapshot.files.push_back(std::move(entry));
  }
  return snapshot;
}

std::shared_ptr<const ModelSource> FakeOrigin::source(const std::string& commit) {
  return std::make_shared<const ModelSource>(ModelSource{shared_from_this(), snapshot(commit)});
}

void FakeOrigin::hold(const std::string& path) {
  std::lock_guard lock(mutex_);
  held_paths_[path] = true;
}

void FakeOrigin::release() {
  held_ = false;
  std::vector<std::shared_ptr<FakeTransfer>> reads;
  std::deque<std::function<void(Result<Snapshot>)>> loads;
  Snapshot snapshot;
  {
    std::lock_guard lock(mutex_);
    held_paths_.clear();
    reads = reads_;
    loads.swap(loads_);
    snapshot = snapshot_locked(commit_);
  }
  for (const auto& read : reads) read->finish();
  for (const auto& load : loads) load(snapshot);
}

void FakeOrigin::fail_reads_of(const std::string& path, std::optional<Error> error) {
  std::lock_guard lock(mutex_);
  failing_.erase(path);
  if (error) failing_.emplace(path, std::move(*error));
}

void FakeOrigin::fail_loads(std::optional<Error> error) {
  std::lock_guard lock(mutex_);
  load_error_ = std::move(error);
}

void FakeOrigin::serve_commit(const std::string& commit) {
  std::lock_guard lock(mutex_);
  commit_ = commit;
}

std::vector<std::shared_ptr<FakeTransfer>> FakeOrigin::reads(size_t count) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, kPatience, [&] { return reads_.size() >= count; })) {
    ADD_FAILURE() << "only " << reads_.size() << " reads of " << count << " were asked for";
  }
  return reads_;
}

uint64_t FakeOrigin::bytes_asked(const std::string& path) {
  uint64_t bytes = 0;
  for (const auto& read : reads()) {
    if (read->path() == path) bytes += read->range().length;
  }
  return bytes;
}

uint64_t FakeOrigin::most_asked(const std::string& path) {
  std::map<uint64_t, int64_t> steps;
  for (const auto& read : reads()) {
    if (read->path() != path) continue;
    ++steps[read->range().offset];
    --steps[read->range().end()];
  }
  int64_t depth = 0, most = 0;
  for (const auto& [at, step] : steps) most = std::max(most, depth += step);
  return static_cast<uint64_t>(most);
}

void FakeOrigin::forget_reads() {
  std::lock_guard lock(mutex_);
  reads_.clear();
}

size_t FakeOrigin::loads_waiting(size_t at_least) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, kPatience, [&] { return loads_.size() >= at_least; })) {
    ADD_FAILURE() << "only " << loads_.size() << " loads wait";
  }
  return loads_.size();
}

void FakeOrigin::answer_load(Result<Snapshot> snapshot) {
  loads_waiting(1);
  std::function<void(Result<Snapshot>)> load;
  {
    std::lock_guard lock(mutex_);
    if (loads_.empty()) return;
    load = std::move(loads_.front());
    loads_.pop_front();
  }
  load(std::move(snapshot));
}

size_t FakeOrigin::loads() const {
  std::lock_guard lock(mutex_);
  return load_count_;
}

void FakeOrigin::load(const std::string&, const std::string& revision,
                      std::function<void(Result<Snapshot>)> done) {
  std::lock_guard lock(mutex_);
  ++load_count_;
  if (held_) {
    loads_.push_back(std::move(done));
    changed_.notify_all();
    return;
  }
  Result<Snapshot> answer = snapshot_locked(commit_);
  answer->revision = revision;
  if (load_error_) answer = tl::unexpected<Error>(*load_error_);
  threads_.post([answer = std::move(answer), done = std::move(done)] { done(answer); });
}

std::shared_ptr<Transfer> FakeOrigin::read(const Snapshot&, ReadRequest request) {
  std::lock_guard lock(mutex_);
  const std::string path = request.file.path;
  const FakeFile& file = files_.at(path);
  EXPECT_GT(request.range.length, 0u) << path;
  EXPECT_LE(request.range.end(), file.bytes.size()) << path;
  auto transfer = std::make_shared<FakeTransfer>(
      std::move(request), file.bytes.substr(request.range.offset, request.range.length), threads_);
  reads_.push_back(transfer);
  changed_.notify_all();
  if (auto error = failing_.find(path); error != failing_.end()) {
    threads_.post(
        [transfer, failure = error->second] { transfer->fail(failure.code, failure.what); });
  } else if (!held_ && !held_paths_.count(path)) {
    threads_.post([transfer] { transfer->finish(); });
  }
  return transfer;
}

CacheUnderTest::CacheUnderTest(CacheOptions options, std::string dir,
                               std::vector<ZoneOptions> zones,
                               std::function<void(int)> before_zone_call)
    : options_(options),
      own_dir_(dir.empty()),
      dir_(std::move(dir)),
      zones_(std::move(zones)),
      before_zone_call_(std::move(before_zone_call)) {
  if (own_dir_) {
    char name[] = "/tmp/nexus-cache-XXXXXX";
    dir_ = ::mkdtemp(name);
  }
  for (ZoneOptions& zone : zones_) zone.path = dir_ + "/" + zone.path;
  start();
}

CacheUnderTest::~CacheUnderTest() {
  if (cache_) cache_->stop();
  clock_.reset();
  origin_->stop();
  origin_->forget_reads();
  cache_.reset();
  store_.reset();
  std::error_code ignored;
  if (own_dir_) std::filesystem::remove_all(dir_, ignored);
}

void CacheUnderTest::start() {
  StoreOptions options;
  options.cache_dir = dir_ + "/cache";
  options.num_zones = 1;
  options.zones = zones_;
  options.before_zone_call = before_zone_call_;
  if (before_zone_call_) options.hang_patience = std::chrono::milliseconds(300);
  options.wear_leveling = zones_.empty();  // those that a test names are filled in turn
  auto store = Store::open(options);
  ASSERT_TRUE(store.has_value()) << store.error().what;
  store_ = std::move(*store);
  cache_ = std::make_unique<Cache>(options_, *store_);
}

void CacheUnderTest::restart(std::optional<CacheOptions> options) {
  if (options) options_ = *options;
  clock_.reset();
  cache_->stop();
  cache_.reset();
  store_.reset();
  origin_->forget_reads();
  start();
}

std::shared_ptr<Object> CacheUnderTest::blob(const std::string& path, const std::string& commit) {
  auto source = origin_->source(commit);
  for (uint32_t i = 0; i < source->snapshot.files.size(); ++i) {
    if (source->snapshot.files[i].path == path) return cache_->object(blob_spec(source, i));
  }
  ADD_FAILURE() << "no file " << path;
  return nullptr;
}

std::shared_ptr<Object> CacheUnderTest::view(const std::string& name, ObjectLayout layout,
                                             std::vector<HeaderDigest> headers) {
  ObjectSpec spec;
  spec.source = origin_->source();
  spec.key = view_key(name, *spec.source, layout);
  spec.model = spec.source->snapshot.repo;
  spec.name = spec.model + "@" + kCommit + "/" + name;
  spec.whole = !layout.crc_records.empty() || layout.size <= kChunkBytes;
  spec.layout = std::move(layout);
  spec.headers = std::move(headers);
  return cache_->object(std::move(spec));
}

Answer<void> CacheUnderTest::fetch(const std::shared_ptr<Object>& object, uint64_t offset,
                                   uint64_t length, uint64_t* ticket, int priority) {
  Answer<void> answer;
  const uint64_t given =
      cache_->fetch(object, ByteRange{offset, length}, priority, answer.callback());
  if (ticket) *ticket = given;
  return answer;
}

Result<std::string> CacheUnderTest::try_to_read(const std::shared_ptr<Object>& object,
                                                uint64_t offset, uint64_t length) {
  std::string bytes(length, '\0');
  const auto into = std::as_writable_bytes(std::span(bytes.data(), bytes.size()));
  // A drop between fetch and read sends the reader back, as it does in fs.
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (auto hit = cache_->try_read(*object, offset, into, attempt > 0)) {
      if (!*hit) return tl::unexpected<Error>(hit->error());
      bytes.resize(**hit);
      return bytes;
    }
    auto fetched = fetch(object, offset, length).get();
    if (!fetched) return tl::unexpected<Error>(fetched.error());
  }
  return nexus::fail(Code::kInvalid, "fetched a hundred times, never there");
}

std::string CacheUnderTest::read(const std::shared_ptr<Object>& object, uint64_t offset,
                                 uint64_t length) {
  auto bytes = try_to_read(object, offset, length);
  return bytes ? std::move(*bytes)
               : std::string(code_name(bytes.error().code)) + ": " + bytes.error().what;
}

Result<std::shared_ptr<ObjectFile>> CacheUnderTest::prepare(const std::shared_ptr<Object>& object) {
  Answer<std::shared_ptr<ObjectFile>> answer;
  cache_->prepare(object, answer.callback());
  return answer.get();
}

void CacheUnderTest::settle() {
  if (!clock_) {
    const std::string path = dir_ + "/clock";
    std::ofstream(path) << "x";
    ObjectSpec spec;
    spec.key = "clock";
    spec.model = "test/clock";
    spec.local_path = path;
    spec.layout = whole_file_layout(0, 1);
    auto source = std::make_shared<ModelSource>();
    source->snapshot.files.resize(1);
    spec.source = std::move(source);
    clock_ = cache_->object(std::move(spec));
  }
  EXPECT_TRUE(fetch(clock_, 0, 1).get().has_value());
}

bool CacheUnderTest::until(const std::function<bool()>& condition) {
  for (const auto end = std::chrono::steady_clock::now() + kPatience;
       std::chrono::steady_clock::now() < end; settle()) {
    if (condition()) return true;
    // What it waits for may be done by a thread of idle priority, which gets what is left.
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return false;
}

std::string safetensors_file(const std::vector<std::pair<std::string, std::string>>& tensors) {
  std::string json = "{", data;
  for (const auto& [name, bytes] : tensors) {
    if (json.size() > 1) json += ",";
    json += "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(bytes.size()) +
            "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
            std::to_string(data.size() + bytes.size()) + "]}";
    data += bytes;
  }
  json += "}";
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(json.size() >> (8 * i) & 0xff);
  return file + json + data;
}

TensorInfo tensor_at(const std::string& name, uint32_t file, uint64_t begin, uint64_t size) {
  TensorInfo tensor;
  tensor.name = name;
  tensor.dtype = Dtype::kU8;
  tensor.shape = {size};
  tensor.file = file;
  tensor.begin = begin;
  tensor.end = begin + size;
  return tensor;
}

std::string expected_bytes(const ObjectLayout& layout, const Snapshot& snapshot,
                           const FakeOrigin& origin) {
  std::string bytes(layout.size, '\0');
  for (const Literal& literal : layout.literals) {
    bytes.replace(literal.dest, literal.bytes.size(), literal.bytes);
  }
  for (const Extent& extent : layout.extents) {
    bytes.replace(extent.dest, extent.length, origin.file(snapshot.files[extent.file].path).bytes,
                  extent.src, extent.length);
  }
  return bytes;
}

int check_zip(const std::string& zip) {
  if (zip.size() < 22 || le(zip, zip.size() - 22, 4) != 0x06054b50) return -1;
  const auto records = static_cast<int>(le(zip, zip.size() - 12, 2));
  size_t at = le(zip, zip.size() - 6, 4);
  for (int i = 0; i < records; ++i) {
    if (le(zip, at, 4) != 0x02014b50) return -1;
    const uint64_t crc = le(zip, at + 16, 4), size = le(zip, at + 24, 4);
    const size_t local = le(zip, at + 42, 4);
    if (le(zip, local, 4) != 0x04034b50 || le(zip, local + 14, 4) != crc) return -1;
    const size_t data = local + 30 + le(zip, local + 26, 2) + le(zip, local + 28, 2);
    const auto* bytes = reinterpret_cast<const Bytef*>(zip.data() + data);
    if (data + size > zip.size() || crc32_z(0, bytes, size) != crc) return -1;
    at += 46 + le(zip, at + 28, 2) + le(zip, at + 30, 2) + le(zip, at + 32, 2);
  }
  return records;
}

}  // namespace nexus::test
