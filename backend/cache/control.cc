// Control: invalidation, pins, verification and upkeep. See control.h and cache.h.
#include "backend/cache/control.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "backend/cache/digest.h"
#include "backend/cache/impl.h"

namespace nexus {

std::string file_of_name(const std::string& model, const std::string& name) {
  // "<model>@<commit>/<path>"; neither model nor commit ends where another '@' could stand.
  if (name.size() <= model.size() || name.compare(0, model.size(), model) != 0) return name;
  const size_t slash = name.find('/', model.size());
  return slash == std::string::npos ? std::string() : name.substr(slash + 1);
}

bool ObjectFilter::matches(const std::string& object_model, const std::string& object_name) const {
  if (!model.empty() && object_model != model) return false;
  if (!object_name.starts_with(name_prefix)) return false;
  return file.empty() || file_of_name(object_model, object_name) == file;
}

Pin pin_of(const ObjectSpec& spec) {
  return {spec.model, file_of_name(spec.model, spec.name)};
}

// --- Invalidation ---

Dropped Cache::Impl::drop_matching(const ObjectFilter& filter) {
  Dropped dropped;
  std::vector<std::shared_ptr<Object>> gone;
  // Nobody begins anew before all of it is gone, else it would be filled from a sibling that goes
  // next.
  held_ = true;
  for (const auto& object : all_objects()) {
    if (!object->spec().local_path.empty() || !object->file()) continue;
    if (!filter.matches(object->spec().model, object->spec().name)) continue;
    if (object->charged_ > 0) ++dropped.objects;
    dropped.bytes += object->charged_;
    drop(object);
    gone.push_back(object);
  }
  held_ = false;
  for (const auto& object : gone) advance(object);
  std::lock_guard lock(mutex_);
  std::erase_if(restored_, [&](const auto& entry) {
    const StoredObject& stored = entry.second;
    if (!filter.matches(stored.meta.model, stored.meta.name)) return false;
    const uint64_t bytes = stored.file->present_bytes();
    ++dropped.objects;
    dropped.bytes += bytes;
    disk_used_ -= bytes;
    store_.remove(stored.file);
    return true;
  });
  return dropped;
}

void Cache::invalidate(ObjectFilter filter, std::function<void(Dropped)> done) {
  impl_->core_.post([impl = impl_.get(), filter = std::move(filter), done = std::move(done)] {
    done(impl->drop_matching(filter));
  });
}

void Cache::clear(std::function<void(Result<Dropped>)> done) {
  impl_->change_pins(
      [](Pins& pins) -> Result<void> {
        pins.clear();
        return {};
      },
      [impl = impl_, done = std::move(done)](Result<void> unpinned) {
        if (unpinned) unpinned = impl->store_.forget_models();
        impl->core_.post([impl, unpinned, done] {
          const Dropped dropped = impl->drop_matching({});
          if (!unpinned) return done(tl::unexpected<Error>(unpinned.error()));
          done(dropped);
        });
      });
}

// --- Pins ---

bool Cache::Impl::is_pinned_locked(const std::string& model, const std::string& file) const {
  if (pins_.empty()) return false;
  return pins_.contains({model, ""}) || pins_.contains({model, file});
}

void Cache::Impl::change_pins(std::function<Result<void>(Pins&)> change,
                              std::function<void(Result<void>)> done) {
  {
    std::lock_guard lock(mutex_);
    if (auto changed = change(pins_); !changed) {
      // Answered on a thread of ours like everything else, so that callers need one way only.
      return pool_.post([changed, done = std::move(done)] { done(changed); });
    }
    for (const auto& [key, object] : objects_) {
      const ObjectSpec& spec = object->spec();
      object->pinned_ = is_pinned_locked(spec.model, file_of_name(spec.model, spec.name));
    }
  }
  // Not on the idle thread: whoever set it waits, and a long verify may be on that.
  pool_.post([this, self = shared_from_this(), done = std::move(done)] {
    Result<void> saved;
    {
      std::lock_guard saving(pins_saving_);
      Pins now;
      {
        std::lock_guard lock(mutex_);
        now = pins_;
      }
      saved = store_.save_pins(now);
    }
    done(saved);
  });
}

void Cache::pin(const Pin& pin, std::function<void(Result<void>)> done) {
  impl_->change_pins(
      [pin](Pins& pins) -> Result<void> {
        if (pin.file.find('\n') != std::string::npos) {
          return fail(Code::kInvalid, "a name with a newline cannot be pinned");
        }
        pins.insert(pin);
        return {};
      },
      std::move(done));
}

void Cache::unpin(const Pin& pin, std::function<void(Result<void>)> done) {
  impl_->change_pins(
      [pin](Pins& pins) -> Result<void> {
        if (!pin.file.empty()) {
          if (pins.erase(pin) > 0) return {};
          if (pins.contains({pin.model, ""})) {
            return fail(Code::kInvalid, pin.model + " is pinned as a whole: unpin that");
          }
          return fail(Code::kNotFound, pin.model + "/" + pin.file + " is not pinned");
        }
        if (std::erase_if(pins, [&](const Pin& one) { return one.model == pin.model; }) > 0) {
          return {};
        }
        return fail(Code::kNotFound, "nothing of " + pin.model + " is pinned");
      },
      std::move(done));
}

Pins Cache::pins() const {
  std::lock_guard lock(impl_->mutex_);
  return impl_->pins_;
}

bool Cache::is_pinned(const std::string& model, const std::string& file) const {
  std::lock_guard lock(impl_->mutex_);
  return impl_->is_pinned_locked(model, file);
}

// --- Verification ---

struct Cache::Impl::Verification {
  VerifyOptions options;
  std::function<void(const VerifyProgress&)> on_progress;
  std::function<void(Result<VerifyReport>)> done;
  std::shared_ptr<CacheJob> job = std::make_shared<CacheJob>();
  // Of the idle thread:
  std::vector<VerifyTarget> targets;
  size_t next = 0;
  VerifyProgress progress;
  VerifyReport report;
};

bool Cache::Impl::drop_restored(const std::string& key, ObjectFile* file) {
  std::lock_guard lock(mutex_);
  auto it = restored_.find(key);
  if (it == restored_.end() || it->second.file.get() != file) return false;
  disk_used_ -= it->second.file->present_bytes();
  store_.remove(it->second.file);
  restored_.erase(it);
  return true;
}

void Cache::Impl::drop_corrupt(const VerifyTarget& target, bool made_from) {
  std::shared_ptr<Object> object = target.object;
  if (!object && drop_restored(target.key, target.file.get())) {
    if (made_from) drop_made_from(target.model, file_id_of_blob(target.key), target.name);
    return;
  }
  if (!object) {
    std::lock_guard lock(mutex_);  // its model was mounted meanwhile
    if (auto it = objects_.find(target.key); it != objects_.end()) object = it->second;
  }
  if (!object || object->file() != target.file) return;
  if (made_from) return drop_made_from(object);
  drop(object);
  advance(object);
}

void Cache::Impl::verify_one(Verification& job, const VerifyTarget& target) {
  const ObjectFile& file = *target.file;
  const auto stop = [&] { return stopping_ || job.job->cancelled(); };
  Result<void> sound;
  bool wrong_digest = false;
  for (uint64_t chunk = 0; chunk < file.chunks() && sound; ++chunk) {
    if (stop()) return;
    if (!file.has(chunk)) continue;
    sound = file.verify_chunk(chunk);
    job.report.bytes += file.chunk_length(chunk);
    job.progress.bytes_done += file.chunk_length(chunk);
    if (job.on_progress) job.on_progress(job.progress);
  }
  if (sound && job.options.origin && !target.digest.empty() && file.complete()) {
    auto digest = digest_of(file, target.git, stop);
    if (stop()) return;
    if (!digest) {
      sound = tl::unexpected<Error>(digest.error());
    } else if (*digest != target.digest) {
      wrong_digest = true;
      sound = fail(Code::kCorrupt, "the hub says " + target.digest + ", the bytes are " + *digest);
    } else {
      ++job.report.matched_origin;
    }
  }
  ++job.report.objects;
  // Removed while it was looked at: whatever was read of it says nothing.
  if (sound || file.retired()) return;
  spdlog::error("verify: {}: {}; dropped, will be fetched again", target.name, sound.error().what);
  job.report.corrupt.push_back(target.name + ": " + sound.error().what);
  core_.post([this, target, wrong_digest] { drop_corrupt(target, wrong_digest); });
}

void Cache::Impl::verify_next(const std::shared_ptr<Verification>& job) {
  be_idle();
  if (stopping_) return job->done(fail(Code::kCancelled, "the mount is closing"));
  if (job->job->cancelled()) return job->done(fail(Code::kCancelled, "verify: cancelled"));
  if (job->next == job->targets.size()) {
    // Behind the drops that it brought.
    return core_.post([job] { job->done(job->report); });
  }
  verify_one(*job, job->targets[job->next]);
  job->targets[job->next++] = {};  // an evicted file goes with its last holder
  ++job->progress.objects_done;
  // One object at a time, so that the digest of a blob that has just come waits for no more.
  idle_.post([this, self = shared_from_this(), job] { verify_next(job); });
}

std::shared_ptr<CacheJob> Cache::verify(VerifyOptions options,
                                        std::function<void(const VerifyProgress&)> progress,
                                        std::function<void(Result<VerifyReport>)> done) {
  auto job = std::make_shared<Impl::Verification>();
  job->options = std::move(options);
  job->on_progress = std::move(progress);
  job->done = std::move(done);
  impl_->idle_.post([impl = impl_, job] {
    const ObjectFilter& filter = job->options.filter;
    const auto add = [&](VerifyTarget target) {
      if (!target.file || target.file->present_chunks() == 0) return;
      job->progress.bytes_total += target.file->present_bytes();
      job->targets.push_back(std::move(target));
    };
    for (const auto& object : impl->all_objects()) {
      const ObjectSpec& spec = object->spec();
      if (!spec.local_path.empty() || !filter.matches(spec.model, spec.name)) continue;
      const bool git = spec.sha256.empty() && is_git_oid(spec.etag);
      add({object, spec.key, spec.model, spec.name, git ? spec.etag : spec.sha256, git,
           object->file()});
    }
    {
      std::lock_guard lock(impl->mutex_);
      for (const auto& [key, stored] : impl->restored_) {
        if (!filter.matches(stored.meta.model, stored.meta.name)) continue;
        add({nullptr, key, stored.meta.model, stored.meta.name, stored.meta.sha256, false,
             stored.file});
      }
    }
    std::sort(job->targets.begin(), job->targets.end(),
              [](const VerifyTarget& a, const VerifyTarget& b) { return a.name < b.name; });
    job->progress.objects_total = job->targets.size();
    impl->verify_next(job);
  });
  return job->job;
}

// --- Upkeep ---

std::shared_ptr<CacheJob> Cache::optimize(std::function<void(const VerifyProgress&)> progress,
                                          std::function<void(Result<OptimizeReport>)> done) {
  return verify({}, std::move(progress),
                [impl = impl_, done = std::move(done)](Result<VerifyReport> verified) {
                  if (!verified) return done(tl::unexpected<Error>(verified.error()));
                  impl->idle_.post([impl, done, verified = std::move(*verified)] {
                    OptimizeReport report;
                    report.verified = verified;
                    report.orphans = impl->store_.remove_orphans();
                    auto compacted = impl->store_.compact();
                    if (!compacted) return done(tl::unexpected<Error>(compacted.error()));
                    report.catalog = *compacted;
                    done(std::move(report));
                  });
                });
}

void Cache::flush(std::function<void()> done) {
  // By way of the core thread: what it has been told is checkpointed before.
  impl_->core_.post([impl = impl_, done = std::move(done)] {
    impl->idle_.post([impl, done] {
      impl->store_.flush();
      done();
    });
  });
}

}  // namespace nexus
