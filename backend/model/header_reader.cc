#include "backend/model/header_reader.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "backend/format/safetensors.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {

namespace {

constexpr uint64_t kFirstRead =
    100'000;  // bytes; the header of most shards and 8 bytes of its length

std::string header_id(const ModelSource& source, uint32_t file) {
  const OriginFile& origin_file = source.snapshot.files[file];
  return source.snapshot.repo + "/" +
         (origin_file.etag.empty() ? source.snapshot.commit : origin_file.etag) + "/" +
         origin_file.path;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Reads [range) into a string; `done` runs on the pool.
void read_range(const std::shared_ptr<const ModelSource>& source, uint32_t file, ByteRange range,
                ThreadPool& pool, std::function<void(Result<std::string>)> done) {
  if (range.length == 0) {
    pool.post([done = std::move(done)] { done(std::string()); });
    return;
  }
  auto text = std::make_shared<std::string>();
  text->reserve(range.length);
  ReadRequest request;
  request.file = source->snapshot.files[file];
  request.range = range;
  request.flow = std::hash<std::string>{}(request.file.etag + request.file.path);
  request.sink = [text](uint64_t, std::span<const std::byte> bytes) -> Result<void> {
    text->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  };
  request.on_done = [text, &pool, done = std::move(done)](Result<void> result) {
    pool.post([text, result = std::move(result), done] {
      if (result) {
        done(std::move(*text));
      } else {
        done(tl::unexpected<Error>(result.error()));
      }
    });
  };
  source->origin->read(source->snapshot, std::move(request));
}

bool passes(const Error& error) {
  return error.code == Code::kOffline || error.code == Code::kOrigin ||
         error.code == Code::kCancelled || error.code == Code::kDisk || error.code == Code::kAccess;
}

// One header on its way. Steps run on the pool, one after the other, so nothing is locked.
class HeaderJob : public std::enable_shared_from_this<HeaderJob> {
 public:
  HeaderJob(HeaderRequest request, Store& store, ThreadPool& pool)
      : request_(std::move(request)), store_(store), pool_(pool) {}

  void start() {
    const OriginFile& file = request_.source->snapshot.files[request_.file];
    if (!file.error.empty()) return finish_with({Code::kCorrupt, file.error});
    if (auto stored = store_.load_header(header_id(*request_.source, request_.file))) {
      stored_ = true;
      request_.kind == WeightKind::kTorch ? unpack_torch(*stored) : parse_safetensors(*stored);
      return;
    }
    fetch_first();
  }

 private:
  void fetch_first() {
    if (request_.kind == WeightKind::kTorch) {
      const uint64_t tail = std::min<uint64_t>(size(), kZipTailBytes);
      fetch({size() - tail, tail}, &HeaderJob::on_tail);
    } else {
      fetch({0, std::min<uint64_t>(size(), kFirstRead)}, &HeaderJob::on_first);
    }
  }

  uint64_t size() const { return request_.source->snapshot.files[request_.file].size; }

  void finish_with(const Error& error) {
    if (stored_) {  // the catalog's copy was no good: the origin's counts
      stored_ = false;
      return fetch_first();
    }
    HeaderOutcome outcome;
    outcome.header.error = error.what;
    outcome.transient = passes(error);
    // A checkpoint we cannot take apart may still be read by whoever can: it stays a plain file.
    if (request_.kind == WeightKind::kTorch && !outcome.transient) {
      outcome.note = request_.source->snapshot.files[request_.file].path + ": " + error.what;
    }
    request_.done(std::move(outcome));
  }

  void fetch(ByteRange range, void (HeaderJob::*next)(std::string)) {
    if (request_.budget->fetch_sub(static_cast<int64_t>(range.length)) <
        static_cast<int64_t>(range.length)) {
      finish_with({Code::kLimit, "the model's headers are over the limit of this mount"});
      return;
    }
    read_range(request_.source, request_.file, range, pool_,
               [self = shared_from_this(), next](Result<std::string> bytes) {
                 if (!bytes) return self->finish_with(bytes.error());
                 ((*self).*next)(std::move(*bytes));
               });
  }

  void on_first(std::string bytes) {
    const auto length = safetensors_header_length(bytes_of(bytes), size());
    if (!length) return finish_with(length.error());
    const uint64_t end = 8 + *length;
    head_ = std::move(bytes);
    if (end <= head_.size()) {
      head_.resize(end);
      parse_safetensors(head_);
    } else {
      fetch({head_.size(), end - head_.size()}, &HeaderJob::on_rest);
    }
  }

  void on_rest(std::string bytes) {
    head_ += bytes;
    parse_safetensors(head_);
  }

  void parse_safetensors(const std::string& bytes) {
    const auto length = safetensors_header_length(bytes_of(bytes), size());
    if (!length) return finish_with(length.error());
    if (bytes.size() != 8 + *length) {
      return finish_with({Code::kCorrupt, "catalog: a stored header has the wrong length"});
    }
    auto header = parse_safetensors_header(std::string_view(bytes).substr(8), size());
    if (!header) return finish_with(header.error());
    if (!stored_) store_.save_header(header_id(*request_.source, request_.file), bytes);
    HeaderOutcome outcome;
    outcome.header.tensors = std::move(header->tensors);
    outcome.digests.push_back(digest(0, bytes));
    request_.done(std::move(outcome));
  }

  void on_tail(std::string bytes) {
    auto directory = find_zip_directory(bytes_of(bytes), size());
    if (!directory) return finish_with(directory.error());
    where_ = *directory;
    if (where_.length > kZipDirectoryMax) {
      return finish_with({Code::kUnsupported, "the zip directory is over the limit"});
    }
    const uint64_t tail_begin = size() - bytes.size();
    if (where_.offset >= tail_begin) {
      on_directory(bytes.substr(where_.offset - tail_begin, where_.length));
    } else {
      fetch(where_, &HeaderJob::on_directory);
    }
  }

  void on_directory(std::string bytes) {
    auto archive = parse_torch_archive(bytes_of(bytes), where_, size());
    if (!archive) return finish_with(archive.error());
    if (archive->pickle.length > kPickleMax) {
      return finish_with({Code::kUnsupported, "data.pkl is over the limit"});
    }
    head_ = std::move(bytes);
    archive_ = std::move(*archive);
    fetch(archive_.pickle, &HeaderJob::on_pickle);
  }

  void on_pickle(std::string pickle) {
    auto tensors = read_torch_pickle(pickle, archive_);
    if (!tensors) return finish_with(tensors.error());
    if (!stored_) {
      // [u64 directory offset][u64 directory length][directory][pickle]
      std::string packed(reinterpret_cast<const char*>(&where_.offset), 8);
      packed.append(reinterpret_cast<const char*>(&where_.length), 8);
      packed += head_;
      packed += pickle;
      store_.save_header(header_id(*request_.source, request_.file), packed);
    }
    HeaderOutcome outcome;
    outcome.header.tensors = std::move(*tensors);
    outcome.digests = {digest(where_.offset, head_), digest(archive_.pickle.offset, pickle)};
    request_.done(std::move(outcome));
  }

  HeaderDigest digest(uint64_t offset, const std::string& bytes) const {
    return {request_.file, {offset, bytes.size()}, XXH3_64bits(bytes.data(), bytes.size())};
  }

  void unpack_torch(const std::string& packed) {
    if (packed.size() < 16) {
      return finish_with({Code::kCorrupt, "catalog: a stored header is too short"});
    }
    std::memcpy(&where_.offset, packed.data(), 8);
    std::memcpy(&where_.length, packed.data() + 8, 8);
    if (where_.length > packed.size() - 16) {
      return finish_with({Code::kCorrupt, "catalog: a stored header is too short"});
    }
    head_ = packed.substr(16, where_.length);
    auto archive = parse_torch_archive(bytes_of(head_), where_, size());
    if (!archive) return finish_with(archive.error());
    archive_ = std::move(*archive);
    on_pickle(packed.substr(16 + where_.length));
  }

  const HeaderRequest request_;
  Store& store_;
  ThreadPool& pool_;
  bool stored_ = false;
  std::string head_;
  ByteRange where_;
  TorchArchive archive_;
};

}  // namespace

void read_weight_header(HeaderRequest request, Store& store, ThreadPool& pool) {
  auto job = std::make_shared<HeaderJob>(std::move(request), store, pool);
  pool.post([job] { job->start(); });
}

void read_small_file(std::shared_ptr<const ModelSource> source, uint32_t file, uint64_t max_bytes,
                     Store& store, ThreadPool& pool,
                     std::function<void(Result<std::string>)> done) {
  pool.post([=, &store, &pool] {
    const OriginFile& origin_file = source->snapshot.files[file];
    if (origin_file.size > max_bytes) {
      return done(fail(Code::kLimit, origin_file.path + ": " + std::to_string(origin_file.size) +
                                         " bytes, more than such a file has"));
    }
    const std::string id = header_id(*source, file);
    if (auto stored = store.load_header(id)) return done(std::move(*stored));
    read_range(source, file, {0, origin_file.size}, pool,
               [&store, id, done](Result<std::string> bytes) {
                 if (bytes) store.save_header(id, *bytes);
                 done(std::move(bytes));
               });
  });
}

}  // namespace nexus
