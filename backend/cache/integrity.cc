// Integrity: chunk hashes of what an earlier run left, and the origin's digest of whole files.
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

#include "backend/cache/digest.h"
#include "backend/cache/impl.h"

namespace nexus {

namespace {
constexpr int kLowestPriority = 19;  // nice
constexpr std::chrono::milliseconds kPauseMax{20};
}  // namespace

Result<void> Cache::Impl::check_range(Object& object, const ObjectFile& file, ByteRange range) {
  if (range.length == 0 || object.trusted_.load(std::memory_order_acquire)) return {};
  for (uint64_t chunk = range.offset / kChunkBytes; chunk <= (range.end() - 1) / kChunkBytes;
       ++chunk) {
    auto& word = object.checked_[chunk / 64];
    const uint64_t bit = 1ull << (chunk % 64);
    if (word.load(std::memory_order_acquire) & bit) continue;
    if (auto checked = file.verify_chunk(chunk); !checked) return checked;
    word.fetch_or(bit);
  }
  return {};
}

void Cache::Impl::check_chunks(const std::shared_ptr<Object>& object) {
  // While a run is on its way its end comes first, and may find every chunk checked.
  if (object->checking_chunks_ || object->trusted_ || !object->runs_.empty()) return;
  // All of it is read anyway: into the RAM tier, where it is then served from.
  if (promote(object)) return;
  check_chunks_on_disk(object);
}

void Cache::Impl::check_chunks_on_disk(const std::shared_ptr<Object>& object) {
  object->checking_chunks_ = true;
  pool_.post([this, self = shared_from_this(), object, file = object->file()] {
    Result<void> checked;
    for (uint64_t chunk = 0; file && chunk < file->chunks() && checked; ++chunk) {
      if (stopping_) return;
      checked = check_range(*object, *file, {chunk * kChunkBytes, file->chunk_length(chunk)});
    }
    core_.post([this, object, file, checked] {
      object->checking_chunks_ = false;
      chunks_checked(object, file, checked);
      advance(object);
    });
  });
}

void Cache::Impl::chunks_checked(const std::shared_ptr<Object>& object,
                                 const std::shared_ptr<ObjectFile>& file,
                                 const Result<void>& checked) {
  if (!file || object->file() != file) return;
  if (!checked) {
    spdlog::error("cache: {}: {}; dropped, will be fetched again", object->spec().name,
                  checked.error().what);
    return drop(object);
  }
  if (object->trusted_.exchange(true)) return;
  if (!object->spec().sha256.empty() && !object->digest_ok_) check_digest(object);
  if (listener_) listener_(object);
}

void Cache::Impl::check_digest(const std::shared_ptr<Object>& object) {
  if (object->checking_digest_) return;
  const ObjectSpec& spec = object->spec();
  const bool git = spec.sha256.empty();
  if (git && !is_git_oid(spec.etag)) {
    if (!spec.local_path.empty()) {
      object->digest_ok_ = true;  // the user's own directory: there is nothing to check it against
      core_.post([this, object] { advance(object); });
      return;
    }
    const std::string error = spec.name + ": strict integrity: the origin gives no digest of it";
    object->set_error(error);
    fail_waiters(object, {0, object->size()}, Error{Code::kOrigin, error});
    return;
  }
  object->checking_digest_ = true;
  const auto file = object->file();
  auto job = [this, self = shared_from_this(), object, file, git] {
    const auto copy = object->ram_copy();  // equal to the file, chunk by chunk
    const auto stop = [this, since = std::chrono::steady_clock::now()]() mutable {
      // Of a processor a quarter at most while something comes that a reader waits for.
      if (!strict() && objects_fetching_ > 0) {
        std::this_thread::sleep_for(
            std::min<std::chrono::nanoseconds>(3 * (std::chrono::steady_clock::now() - since), kPauseMax));
      }
      since = std::chrono::steady_clock::now();
      return stopping_.load();
    };
    auto digest = file ? digest_of(copy ? *copy : *file, git, stop) : fail(Code::kCancelled, "dropped");
    core_.post([this, object, file, git, digest] {
      object->checking_digest_ = false;
      if (object->file() != file || !file) return advance(object);
      const std::string& expected = git ? object->spec().etag : object->spec().sha256;
      if (!digest && digest.error().code == Code::kCancelled) return;
      if (!digest) {
        // The disk could not be read; nothing is known of the bytes.
        drop(object);
      } else if (*digest == expected) {
        object->digest_ok_ = true;
        if (file->zone() >= 0) store_.checkpoint(file, object->meta());
      } else {
        const std::string error = object->spec().name + ": " + (git ? "git" : "sha256") +
                                  " digest mismatch: the hub says " + expected +
                                  ", the bytes are " + *digest + "; dropped, will be fetched again";
        spdlog::error("{}", error);
        object->set_error(error);
        fail_waiters(object, {0, object->size()}, Error{Code::kCorrupt, error});
        if (object->spec().local_path.empty()) drop_made_from(object);
        return;
      }
      advance(object);
    });
  };
  if (strict()) {
    pool_.post(std::move(job));  // a reader waits for it
  } else {
    idle_.post([this, job = std::move(job)] {
      be_idle();
      job();
    });
  }
}

void Cache::Impl::be_idle() {
  // Once a thread: 0.4 GB/s of SHA-256 must not slow a reader down.
  static thread_local const bool idle = [] {
    // Not SCHED_IDLE: on a machine whose processors are never idle that would take minutes for a
    // file.
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kLowestPriority);
    // IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE; schedulers without priorities ignore it.
    ::syscall(SYS_ioprio_set, 1, 0, 3 << 13);
    return true;
  }();
  (void)idle;
}

bool Cache::Impl::blobs_ready(const std::shared_ptr<Object>& object, int priority) {
  if (object->spec().headers.empty()) {  // a blob: its own digest is checked
    if (object->spec().layout.extents.empty() && object->size() > 0) {
      object->digest_ok_ = true;  // a view without a byte of the origin's (an empty dict)
    }
    return true;
  }
  if (object->awaited_blobs_ > 0) {
    if (priority >= object->awaited_priority_) return false;
    // A reader came for what was prefetched: its sources are as urgent as it is from now on.
    object->awaited_priority_ = priority;
    for (const HeaderDigest& header : object->spec().headers) {
      auto blob = this->object(blob_spec(object->spec().source, header.file));
      if (blob->digest_ok_) continue;
      Waiter waiter;
      waiter.range = {0, blob->size()};
      waiter.priority = priority;
      waiter.digest = true;
      waiter.ticket = next_ticket_.fetch_add(1);
      object->awaited_tickets_.push_back(waiter.ticket);
      waiter.since = std::chrono::steady_clock::now();
      core_.post([this, blob, waiter = std::move(waiter)]() mutable {
        add_waiter(blob, std::move(waiter));
      });
    }
    return false;
  }
  bool ready = true;
  for (const HeaderDigest& header : object->spec().headers) {
    auto blob = this->object(blob_spec(object->spec().source, header.file));
    auto file = blob->file();
    if (blob->digest_ok_ && file && file->complete()) {
      if (object->digest_ok_) continue;
      std::vector<std::byte> bytes(header.range.length);
      auto read = file->read(header.range.offset, bytes);
      if (read && XXH3_64bits(bytes.data(), bytes.size()) == header.xxh3) continue;
      const std::string error = object->spec().name +
                                ": strict integrity: the header it was laid "
                                "out by is not that of the verified " +
                                blob->spec().name;
      spdlog::error("{}", error);
      object->set_error(error);
      fail_waiters(object, {0, object->size()}, Error{Code::kCorrupt, error});
      return false;
    }
    ready = false;
    ++object->awaited_blobs_;
    object->awaited_priority_ = priority;
    Waiter waiter;
    waiter.range = {0, blob->size()};
    waiter.priority = priority;
    waiter.digest = true;
    waiter.done = [this, object](Result<void> result) {
      // Posted: this may run inside the blob's own advance().
      core_.post([this, object, result] {
        const bool last = --object->awaited_blobs_ == 0;
        const bool given_up = object->awaited_given_up_;
        if (last) {
          object->awaited_tickets_.clear();
          object->awaited_given_up_ = false;
        }
        if (result) return advance(object);
        if (given_up && !stopping_ && result.error().code == Code::kCancelled) {
          if (last) advance(object);  // whoever came since begins anew
          return;
        }
        object->set_error(result.error().what);
        fail_waiters(object, {0, object->size()}, result.error());
      });
    };
    waiter.ticket = next_ticket_.fetch_add(1);
    object->awaited_tickets_.push_back(waiter.ticket);
    waiter.since = std::chrono::steady_clock::now();
    core_.post([this, blob, waiter = std::move(waiter)]() mutable {
      add_waiter(blob, std::move(waiter));
    });
  }
  if (ready) object->digest_ok_ = true;
  return ready;
}

}  // namespace nexus
