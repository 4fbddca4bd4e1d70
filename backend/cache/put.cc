#include "backend/cache/put.h"

#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "backend/cache/impl.h"

namespace nexus {

namespace {

constexpr std::string_view kKeyPrefix = "put:";
constexpr size_t kHashDigits = 32;
// Large aligned runs, as of downloads.
constexpr uint64_t kPutBlockBytes = 4 << 20;
static_assert(kPutBlockBytes % kChunkBytes == 0);

class NoTransfer final : public Transfer {
 public:
  void cancel() override {}
  void set_priority(int) override {}
};

class PutOrigin final : public Origin {
 public:
  std::string describe() const override { return "put into the cache"; }
  void load(const std::string& repo, const std::string&,
            std::function<void(Result<Snapshot>)> done) override {
    done(fail(Code::kNotFound, repo + ": no origin has it"));
  }
  std::shared_ptr<Transfer> read(const Snapshot& snapshot, ReadRequest request) override {
    request.on_done(fail(Code::kNotFound, snapshot.repo + "/" + request.file.path +
                                              ": was put into the cache and is gone from it"));
    return std::make_shared<NoTransfer>();
  }
  bool reachable() const override { return true; }
};

Result<std::string> hash_of(uint64_t size, const PutRead& read, std::byte* buffer) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_128bits_reset(state.get());
  for (uint64_t at = 0; at < size; at += kPutBlockBytes) {
    const std::span bytes(buffer, std::min(kPutBlockBytes, size - at));
    if (auto got = read(at, bytes); !got) return tl::unexpected<Error>(got.error());
    XXH3_128bits_update(state.get(), bytes.data(), bytes.size());
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  char hex[kHashDigits + 1];
  std::snprintf(hex, sizeof hex, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return std::string(hex);
}

Result<void> write_all(ObjectFile& file, const PutRead& read, const std::shared_ptr<std::byte[]>& buffer) {
  for (uint64_t at = 0; at < file.size(); at += kPutBlockBytes) {
    const std::span bytes(buffer.get(), std::min(kPutBlockBytes, file.size() - at));
    if (auto got = read(at, bytes); !got) return got;
    if (auto written = file.write(at, buffer, bytes.size()); !written) return written;
    for (uint64_t done = 0; done < bytes.size(); done += kChunkBytes) {
      const uint64_t chunk = (at + done) / kChunkBytes;
      file.seal_chunk(chunk, bytes.subspan(done, file.chunk_length(chunk)));
    }
  }
  return {};
}

}  // namespace

bool is_put_key(const std::string& key) {
  return key.starts_with(kKeyPrefix);
}

std::shared_ptr<Origin> put_origin() {
  static const std::shared_ptr<Origin> origin = std::make_shared<PutOrigin>();
  return origin;
}

ObjectSpec put_spec(const PutFile& put) {
  Snapshot snapshot;
  snapshot.repo = put.model;
  snapshot.revision = "main";
  snapshot.commit = kPutCommit;
  OriginFile file;
  file.path = put.file;
  file.size = put.size;
  file.etag = "put-" + put.hash;
  snapshot.files.push_back(std::move(file));
  ObjectSpec spec;
  spec.key = std::string(kKeyPrefix) + put.hash + ":" + put.model + "/" + put.file;
  spec.model = put.model;
  spec.name = put.model + "@" + kPutCommit + "/" + put.file;
  spec.etag = snapshot.files.front().etag;
  spec.layout = whole_file_layout(0, put.size);
  spec.whole = true;
  spec.source = std::make_shared<ModelSource>(ModelSource{put_origin(), std::move(snapshot)});
  return spec;
}

std::optional<PutFile> put_file_of(const ObjectMeta& meta) {
  const size_t end = kKeyPrefix.size() + kHashDigits;
  if (!is_put_key(meta.key) || meta.key.size() <= end || meta.key[end] != ':') return std::nullopt;
  PutFile put{meta.model, file_of_name(meta.model, meta.name), meta.size,
              meta.key.substr(kKeyPrefix.size(), kHashDigits)};
  // What a sidecar says of itself must agree.
  if (put_spec(put).key != meta.key) return std::nullopt;
  return put;
}

// --- In the cache ---

void Cache::put(PutFile put, PutRead read, std::function<void(Result<void>)> done) {
  impl_->promote_.post([impl = impl_, put = std::move(put), read = std::move(read),
                        done = std::move(done)]() mutable {
    const std::shared_ptr<std::byte[]> buffer(new std::byte[std::min(kPutBlockBytes, put.size)]);
    const std::string what = "put " + put.model + "/" + put.file;
    const auto refuse = [&](const Error& error) { done(fail(error, what)); };
    if (put.size == 0) return refuse({Code::kInvalid, "no bytes"});
    if (put.size > impl->options_.disk_bytes) {
      return refuse(
          {Code::kLimit, std::to_string(put.size) + " bytes are more than the cache holds"});
    }
    auto hash = hash_of(put.size, read, buffer.get());
    if (!hash) return refuse(hash.error());
    put.hash = *hash;
    const auto object = impl->object(put_spec(put));
    std::shared_ptr<ObjectFile> file;
    if (!object->resident()) {
      // What has no origin is not kept in memory alone: it would be lost without a word.
      impl->touch(*object);
      ObjectMeta meta = object->meta();
      meta.verified = true;
      auto created = impl->store_.create(meta, true);
      if (!created) return refuse(created.error());
      file = std::move(*created);
      if (auto written = write_all(*file, read, buffer); !written) {
        impl->store_.remove(file);
        return refuse(written.error());
      }
    }
    impl->core_.post([impl, put, object, file, done = std::move(done)] {
      done(impl->install_put(put, object, file));
    });
  });
}

Result<void> Cache::Impl::install_put(const PutFile& put, const std::shared_ptr<Object>& object,
                                      const std::shared_ptr<ObjectFile>& file) {
  if (file) {
    if (object->file()) drop(object);  // a fetch that can only fail, or the same bytes put twice
    {
      std::lock_guard lock(object->mutex_);
      object->file_ = file;
      object->content_hash_.reset();
      object->error_.clear();
    }
    for (auto& word : object->checked_) word = ~0ull;
    object->trusted_ = true;
    object->digest_ok_ = true;  // it is what was put: strict integrity has no other truth
    object->in_memory_ = false;
    add_charge(*object, object->size());
  } else if (!object->resident()) {
    return fail(Code::kCancelled,
                "put " + put.model + "/" + put.file + ": dropped meanwhile; try again");
  }
  std::shared_ptr<Object> before;
  {
    std::lock_guard lock(mutex_);
    auto [entry, first] = puts_[put.model].try_emplace(put.file, put);
    if (!first && entry->second.hash != put.hash) {
      const auto old = objects_.find(put_spec(entry->second).key);
      if (old != objects_.end()) before = old->second;
      entry->second = put;
    }
  }
  completed(object, object->file());
  if (before) drop(before);
  evict();
  return {};
}

void Cache::Impl::restore_puts() {
  std::map<std::pair<std::string, std::string>, const StoredObject*> newest;
  std::vector<std::string> replaced;
  for (const auto& [key, stored] : restored_) {
    if (!is_put_key(key)) continue;
    const auto put = put_file_of(stored.meta);
    if (!put || !stored.file->complete()) {
      replaced.push_back(key);
      continue;
    }
    const StoredObject*& at = newest[{put->model, put->file}];
    // A crash between a put and the end of what it replaced leaves both.
    if (at && at->meta.last_access_ms > stored.meta.last_access_ms) {
      replaced.push_back(key);
      continue;
    }
    if (at) replaced.push_back(at->meta.key);
    at = &stored;
    puts_[put->model][put->file] = *put;
  }
  for (const std::string& key : replaced) {
    auto it = restored_.find(key);
    disk_used_ -= it->second.file->present_bytes();
    store_.remove(it->second.file);
    restored_.erase(it);
  }
}

std::shared_ptr<Object> Cache::find_put(const std::string& model, const std::string& file) {
  while (true) {
    PutFile put;
    {
      std::lock_guard lock(impl_->mutex_);
      const auto of_model = impl_->puts_.find(model);
      if (of_model == impl_->puts_.end()) return nullptr;
      const auto it = of_model->second.find(file);
      if (it == of_model->second.end()) return nullptr;
      put = it->second;
    }
    auto object = impl_->object(put_spec(put));
    if (object->resident()) return object;
    // Evicted, invalidated or corrupt: unless it was put anew meanwhile it is no more.
    std::lock_guard lock(impl_->mutex_);
    auto& files = impl_->puts_[model];
    const auto it = files.find(file);
    if (it != files.end() && it->second.hash == put.hash && !object->resident()) files.erase(it);
    if (files.empty()) impl_->puts_.erase(model);
  }
}

std::vector<std::string> Cache::put_files(const std::string& model) const {
  std::vector<std::string> files;
  std::lock_guard lock(impl_->mutex_);
  if (const auto it = impl_->puts_.find(model); it != impl_->puts_.end()) {
    for (const auto& [file, put] : it->second) files.push_back(file);
  }
  return files;
}

std::vector<std::string> Cache::put_models() const {
  std::vector<std::string> models;
  std::lock_guard lock(impl_->mutex_);
  for (const auto& [model, files] : impl_->puts_) models.push_back(model);
  return models;
}

}  // namespace nexus
