#include "backend/cache/cache.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "backend/cache/impl.h"

namespace nexus {

int64_t wall_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Cache::Impl::Impl(CacheOptions options, Store& store)
    : options_(std::move(options)),
      store_(store),
      policy_(make_eviction_policy(options_.eviction_policy, options_.disk_bytes)) {
  pins_ = store_.load_pins();
  std::vector<StoredObject> left = store_.take_objects();
  restored_.reserve(left.size());
  for (StoredObject& stored : left) {
    disk_used_ += stored.file->present_bytes();
    std::string key = stored.meta.key;
    restored_.emplace(std::move(key), std::move(stored));
  }
  restore_puts();
}

void Cache::Impl::start() {
  if (options_.ram) core_.post([this] { watch_memory(); });
  if (options_.migrate_interval.count() > 0) core_.post([this] { migrate_now_and_then(); });
  if (options_.scrub_interval.count() > 0) core_.post([this] { start_scrubbing(); });
}

Cache::Cache(CacheOptions options, Store& store)
    : impl_(std::make_shared<Impl>(std::move(options), store)) {
  impl_->start();
}

Cache::~Cache() {
  stop();
}

std::shared_ptr<Object> Cache::object(ObjectSpec spec) {
  return impl_->object(std::move(spec));
}

std::shared_ptr<Object> Cache::Impl::object(ObjectSpec spec) {
  std::lock_guard lock(mutex_);
  if (auto it = objects_.find(spec.key); it != objects_.end()) return it->second;
  auto object = std::make_shared<Object>(std::move(spec));
  objects_.emplace(object->spec().key, object);
  object->pinned_ = is_pinned_locked(pin_of(object->spec()));
  auto& siblings = siblings_[object->spec().model];
  siblings.push_back(object);
  if (auto it = restored_.find(object->spec().key); it != restored_.end()) {
    StoredObject stored = std::move(it->second);
    restored_.erase(it);
    object->hits_ = stored.meta.hits;
    object->last_access_ms_ = stored.meta.last_access_ms;
    object->digest_ok_ = stored.meta.verified;
    // Under strict integrity only what was checked before may stay; a size that changed is not this
    // object (the key says otherwise, so the sidecar lied).
    object->charged_ = stored.file->present_bytes();
    if ((strict() && !stored.meta.verified) || stored.file->size() != object->size() ||
        !object->spec().local_path.empty()) {
      disk_used_ -= object->charged_;
      object->charged_ = 0;
      store_.remove(stored.file);
    } else {
      object->file_ = std::move(stored.file);
    }
  }
  return object;
}

std::vector<std::shared_ptr<Object>> Cache::Impl::all_objects() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Object>> all;
  all.reserve(objects_.size());
  for (const auto& [key, object] : objects_) all.push_back(object);
  return all;
}

void Cache::Impl::touch(Object& object) {
  object.last_access_ms_.store(wall_ms(), std::memory_order_relaxed);
}

bool Cache::Impl::digest_satisfied(const Object& object) const {
  if (!strict()) return true;
  return object.digest_ok_.load(std::memory_order_acquire);
}

void Cache::Impl::count_read(Object& object, ByteRange range) {
  if (!object.prefetched_.any()) return;
  if (object.spec().whole) range = {0, object.size()};
  prefetch_used_ += object.prefetched_.take(range);
}

std::shared_ptr<ObjectFile> Cache::Impl::local_file(Object& object, std::string* error) {
  std::lock_guard lock(object.mutex_);
  if (object.file_) return object.file_;
  const std::string& path = object.spec().local_path;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    *error = path + ": " + std::strerror(errno);
    return nullptr;
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0 || static_cast<uint64_t>(st.st_size) != object.size()) {
    *error = path + ": is " + std::to_string(st.st_size) + " bytes now, was " +
             std::to_string(object.size()) + " when the model was listed";
    ::close(fd);
    return nullptr;
  }
  auto file = std::make_shared<ObjectFile>(object.spec().key, path, -1, fd, object.size());
  const uint64_t chunks = file->chunks();
  file->restore(std::vector<uint64_t>(chunks / 64 + 1, ~0ull), std::vector<uint64_t>(chunks, 0));
  object.trusted_ = true;  // there is no hash of ours to check it against
  object.file_ = file;
  return file;
}

std::optional<Result<size_t>> Cache::try_read(Object& object, uint64_t offset,
                                              std::span<std::byte> into, bool waited) {
  return impl_->try_read(object, offset, into, waited);
}

std::optional<Result<size_t>> Cache::Impl::try_read(Object& object, uint64_t offset,
                                                    std::span<std::byte> into, bool waited) {
  if (offset >= object.size() || into.empty()) return Result<size_t>(0);
  const uint64_t length = std::min<uint64_t>(into.size(), object.size() - offset);
  std::shared_ptr<ObjectFile> file = object.file();
  if (!object.spec().local_path.empty() && !file) {
    std::string error;
    file = local_file(object, &error);
    if (!file) return Result<size_t>(fail(Code::kDisk, error));
  }
  const ByteRange range{offset, length};
  if (!file || !file->has(range) || !digest_satisfied(object)) return std::nullopt;
  if (object.spec().whole && !file->complete()) return std::nullopt;
  if (!object.trusted_.load(std::memory_order_acquire)) {
    if (auto checked = check_range(object, *file, range); !checked) {
      spdlog::error("cache: {}: {}; dropped, will be fetched again", object.spec().name,
                    checked.error().what);
      core_.post([this, shared = object.shared_from_this(), file] {
        if (shared->file() == file) drop(shared);
      });
      return std::nullopt;
    }
  }
  // The checks above are of the object's present file: one that was dropped meanwhile is not read.
  const auto copy = object.ram_copy();
  if (object.file() != file) return std::nullopt;
  if (auto read = (copy ? copy : file)->read(offset, into.first(length)); !read) {
    if (!object.spec().local_path.empty()) {
      return Result<size_t>(tl::unexpected<Error>(read.error()));
    }
    // The disk does not give it back, the origin may.
    spdlog::error("cache: {}; dropped, will be fetched again", read.error().what);
    core_.post([this, shared = object.shared_from_this(), file] {
      if (shared->file() == file) drop(shared);
    });
    return std::nullopt;
  }
  if (!waited) {
    hits_.fetch_add(1, std::memory_order_relaxed);
    object.hits_.fetch_add(1, std::memory_order_relaxed);
    served_.fetch_add(length, std::memory_order_relaxed);
  }
  touch(object);
  count_read(object, range);
  return Result<size_t>(length);
}

uint64_t Cache::Impl::submit(const std::shared_ptr<Object>& object, Waiter waiter) {
  waiter.ticket = next_ticket_.fetch_add(1);
  waiter.since = std::chrono::steady_clock::now();
  const uint64_t ticket = waiter.ticket;
  // Under the lock that stop() takes: what is posted before it is answered, what comes later is
  // not.
  std::unique_lock lock(mutex_);
  if (stopping_) {
    lock.unlock();
    if (waiter.done) waiter.done(fail(Code::kCancelled, "the mount is closing"));
    return ticket;
  }
  core_.post([this, object, waiter = std::move(waiter)]() mutable {
    add_waiter(object, std::move(waiter));
  });
  return ticket;
}

uint64_t Cache::fetch(const std::shared_ptr<Object>& object, ByteRange range, int priority,
                      Done done) {
  Waiter waiter;
  const uint64_t end = std::min(object->size(), range.end());
  waiter.range = {std::min(range.offset, end), end - std::min(range.offset, end)};
  if (object->spec().whole) waiter.range = {0, object->size()};
  waiter.priority = priority;
  waiter.digest = impl_->strict();
  waiter.done = std::move(done);
  if (priority != kDemand && !waiter.done) {
    impl_->core_.post([impl = impl_.get(), object, range = waiter.range, priority] {
      if (impl->strict() || impl->stopping_) return;
      impl->start_missing(object, range, priority);
    });
    return 0;
  }
  if (priority == kDemand) {
    impl_->misses_.fetch_add(1, std::memory_order_relaxed);
    impl_->touch(*object);
    impl_->count_read(*object, waiter.range);
  }
  return impl_->submit(object, std::move(waiter));
}

uint64_t Cache::prefetch(const std::shared_ptr<Object>& object, ByteRange range, int priority,
                         Done done) {
  Waiter waiter;
  const uint64_t end = std::min(object->size(), range.end());
  waiter.range = {std::min(range.offset, end), end - std::min(range.offset, end)};
  if (object->spec().whole) waiter.range = {0, object->size()};
  waiter.priority = std::max(priority, kPrefetch);
  waiter.digest = impl_->strict();
  waiter.done = std::move(done);
  return impl_->submit(object, std::move(waiter));
}

uint64_t Cache::prepare(const std::shared_ptr<Object>& object, FileDone done) {
  if (auto file = impl_->file_to_open(*object)) {
    done(std::move(file));
    return 0;
  }
  if (!object->spec().local_path.empty() && !impl_->strict()) {
    std::string error;
    auto file = impl_->local_file(*object, &error);
    if (file) {
      done(std::move(file));
    } else {
      object->set_error(error);
      done(fail(Code::kDisk, error));
    }
    return 0;
  }
  Waiter waiter;
  waiter.range = {0, object->size()};
  waiter.priority = kDemand;
  waiter.digest = impl_->strict();
  waiter.trust = true;
  waiter.done = [object, done = std::move(done)](Result<void> result) {
    if (!result) return done(tl::unexpected<Error>(result.error()));
    if (auto file = object->fastest_file()) return done(std::move(file));
    done(fail(Code::kCancelled, object->spec().name + ": dropped while it was opened"));
  };
  if (!object->resident()) impl_->misses_.fetch_add(1, std::memory_order_relaxed);
  impl_->touch(*object);
  impl_->count_read(*object, waiter.range);
  return impl_->submit(object, std::move(waiter));
}

std::shared_ptr<ObjectFile> Cache::ready_file(Object& object) {
  return impl_->ready_file(object);
}

std::shared_ptr<ObjectFile> Cache::Impl::ready_file(Object& object) {
  auto file = object.file();
  if (!file || !file->complete() || !digest_satisfied(object)) return nullptr;
  // Left by an earlier run: its hashes are checked when it is opened.
  if (!object.trusted_.load(std::memory_order_acquire)) return nullptr;
  auto copy = object.ram_copy();
  if (object.file() != file) return nullptr;  // dropped while its checks were looked at
  // Comes from the origin. What the page cache still shows of a failed one may be lost already.
  if (!copy && (file->hung() || file->failed())) return nullptr;
  return copy ? copy : file;
}

std::shared_ptr<ObjectFile> Cache::file_to_open(Object& object) {
  return impl_->file_to_open(object);
}

std::shared_ptr<ObjectFile> Cache::Impl::file_to_open(Object& object) {
  auto file = ready_file(object);
  // What was put in has no origin, and what is not in a zone no disk.
  if (!file || file->zone() < 0 || file->size() == 0 || is_put_key(object.spec().key)) return file;
  for (const uint64_t offset : {uint64_t{0}, file->size() - 1}) {
    std::byte byte;
    const auto read = file->read(offset, {&byte, 1});
    if (read) continue;
    spdlog::error("cache: {}: {}; dropped, will be fetched again", object.spec().name,
                  read.error().what);
    object.trusted_ = false;  // at once: who asks next comes after the drop
    core_.post([this, shared = object.shared_from_this(), file] {
      if (shared->file() == file) drop(shared);
    });
    return nullptr;
  }
  return file;
}

void Cache::promote(const std::shared_ptr<Object>& object) {
  impl_->core_.post([impl = impl_.get(), object] { impl->promote(object); });
}

void Cache::cancel(uint64_t ticket) {
  impl_->core_.post([impl = impl_.get(), ticket] { impl->remove_waiter(ticket); });
}

void Cache::abandon(const std::shared_ptr<Object>& object) {
  object->closed_at_ = std::chrono::steady_clock::now();
  impl_->let_go_after(object, impl_->options_.linger);
}

// One timer an object, however often it is opened and closed.
void Cache::Impl::let_go_after(const std::shared_ptr<Object>& object,
                               std::chrono::steady_clock::duration delay) {
  if (object->lingers_.exchange(true)) return;
  core_.post_after(std::chrono::ceil<std::chrono::milliseconds>(delay), [this, object] {
    // In this order: who closes it from now on sets the next one.
    object->lingers_ = false;
    const auto due = object->closed_at_.load() + options_.linger;
    if (const auto now = std::chrono::steady_clock::now(); now < due) {
      return let_go_after(object, due - now);
    }
    if (object->opens_ > 0) return;
    cancel_unwanted_runs(object, true);
    promote_if_hot(object);
    note_use(*object);
  });
}

void Cache::count_passthrough_open(Object& object) {
  impl_->hits_.fetch_add(1, std::memory_order_relaxed);
  object.hits_.fetch_add(1, std::memory_order_relaxed);
  impl_->served_.fetch_add(object.size(), std::memory_order_relaxed);
  impl_->touch(object);
  impl_->count_read(object, {0, object.size()});
}

void Cache::content_hash(const std::shared_ptr<Object>& object,
                         std::function<void(Result<uint64_t>)> done) {
  auto file = object->file();
  if (!file || !file->complete()) {
    return done(fail(Code::kNotFound, object->spec().name + ": not resident"));
  }
  {
    std::unique_lock lock(object->mutex_);
    if (object->content_hash_) {
      const uint64_t hash = *object->content_hash_;
      lock.unlock();
      return done(hash);
    }
  }
  impl_->pool_.post([object, file, done = std::move(done)] {
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                                XXH3_freeState);
    XXH3_64bits_reset(state.get());
    std::vector<std::byte> buffer(kChunkBytes);
    for (uint64_t chunk = 0; chunk < file->chunks(); ++chunk) {
      const std::span<std::byte> bytes(buffer.data(), file->chunk_length(chunk));
      if (auto read = file->read(chunk * kChunkBytes, bytes); !read) {
        return done(tl::unexpected<Error>(read.error()));
      }
      XXH3_64bits_update(state.get(), bytes.data(), bytes.size());
    }
    const uint64_t hash = XXH3_64bits_digest(state.get());
    {
      std::lock_guard lock(object->mutex_);
      if (object->file_ == file) object->content_hash_ = hash;
    }
    done(hash);
  });
}

void Cache::drop(const std::shared_ptr<Object>& object) {
  impl_->core_.post([impl = impl_.get(), object] { impl->drop(object); });
}

void Cache::on_change(std::function<void(const std::shared_ptr<Object>&)> listener) {
  impl_->listener_ = std::move(listener);
}

void Cache::stop() {
  {
    std::lock_guard lock(impl_->mutex_);
    if (impl_->stopping_.exchange(true)) return;
  }
  // Waiters are answered on the core thread like everything else; transfers then end by themselves,
  // and a run that is ended ignores whatever they still deliver.
  impl_->core_.post([impl = impl_.get()] {
    for (const auto& object : impl->all_objects()) {
      impl->answer(object, std::exchange(object->waiters_, {}),
                   fail(Code::kCancelled, "the mount is closing"));
      for (const auto& run : std::vector(object->runs_)) {
        impl->end_run(run, fail(Code::kCancelled, "the mount is closing"));
      }
    }
  });
  impl_->core_.stop();
  impl_->promote_.stop();
  impl_->pool_.stop();
  impl_->idle_.stop();
  impl_->upkeep_.stop();
}

}  // namespace nexus
