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

Pin pin_of(const std::string& model, const std::string& name) {
  return {model, file_of_name(model, name)};
}
Pin pin_of(const ObjectSpec& spec) {
  return pin_of(spec.model, spec.name);
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
  const Dropped restored = drop_restored([&](const ObjectMeta& meta, const ObjectFile&) {
    return filter.matches(meta.model, meta.name);
  });
  return {dropped.objects + restored.objects, dropped.bytes + restored.bytes};
}

Dropped Cache::Impl::drop_restored(
    const std::function<bool(const ObjectMeta&, const ObjectFile&)>& wanted) {
  Dropped dropped;
  std::lock_guard lock(mutex_);
  for (auto it = restored_.begin(); it != restored_.end();) {
    it = wanted(it->second.meta, *it->second.file) ? drop_restored_locked(it, dropped) : ++it;
  }
  return dropped;
}

bool Cache::Impl::drop_restored(const std::string& key, const ObjectFile* file) {
  Dropped dropped;
  std::lock_guard lock(mutex_);
  const auto it = restored_.find(key);
  if (it == restored_.end() || it->second.file.get() != file) return false;
  drop_restored_locked(it, dropped);
  return true;
}

Cache::Impl::Restored::iterator Cache::Impl::drop_restored_locked(Restored::iterator entry,
                                                                  Dropped& dropped) {
  const auto file = entry->second.file;
  const uint64_t bytes = file->present_bytes();
  ++dropped.objects;
  dropped.bytes += bytes;
  disk_used_ -= bytes;
  store_.remove(file);
  return restored_.erase(entry);
}

void Cache::invalidate(ObjectFilter filter, std::function<void(Dropped)> done) {
  impl_->core_.post([impl = impl_.get(), filter = std::move(filter), done = std::move(done)] {
    done(impl->drop_matching(filter));
  });
}

void Cache::clear(std::function<void(Result<Dropped>)> done) {
  impl_->change_pins(
      "",
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

bool Cache::Impl::is_pinned_locked(const Pin& pin) const {
  if (pins_.empty()) return false;
  return pins_.contains({pin.model, ""}) || pins_.contains(pin);
}

void Cache::Impl::change_pins(const std::string& model, std::function<Result<void>(Pins&)> change,
                              std::function<void(Result<void>)> done) {
  {
    std::lock_guard lock(mutex_);
    if (auto changed = change(pins_); !changed) {
      // Answered on a thread of ours like everything else, so that callers need one way only.
      return pool_.post([changed, done = std::move(done)] { done(changed); });
    }
    // All, or what may hold bytes of the one model.
    const auto refresh = [&](const std::shared_ptr<Object>& object) {
      object->pinned_ = is_pinned_locked(pin_of(object->spec()));
    };
    if (model.empty()) {
      for (const auto& [key, object] : objects_) refresh(object);
    } else if (auto it = siblings_.find(model); it != siblings_.end()) {
      for (const auto& weak : it->second) {
        if (const auto object = weak.lock()) refresh(object);
      }
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
      pin.model,
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
      pin.model,
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
  return impl_->is_pinned_locked({model, file});
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

void Cache::Impl::found_corrupt(const char* by, const VerifyTarget& target, const Error& error,
                                bool made_from) {
  spdlog::error("{}: {}: {}; dropped, will be fetched again", by, target.name, error.what);
  core_.post([this, target, made_from] { drop_corrupt(target, made_from); });
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
  bool wrong_digest = false;
  Result<void> sound = check_file(target.file, false, [&](uint64_t bytes) {
    job.report.bytes += bytes;
    job.progress.bytes_done += bytes;
    if (bytes > 0 && job.on_progress) job.on_progress(job.progress);
    return !stop();
  });
  if (stop()) return;
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
  job.report.corrupt.push_back(target.name + ": " + sound.error().what);
  found_corrupt("verify", target, sound.error(), wrong_digest);
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
  impl_->start_verification(job);
  return job->job;
}

std::vector<VerifyTarget> Cache::Impl::verify_targets(const ObjectFilter& filter) const {
  std::vector<VerifyTarget> targets;
  const auto add = [&](VerifyTarget target) {
    if (target.file && target.file->present_chunks() > 0) targets.push_back(std::move(target));
  };
  for (const auto& object : all_objects()) {
    const ObjectSpec& spec = object->spec();
    if (!spec.local_path.empty() || !filter.matches(spec.model, spec.name)) continue;
    const bool git = spec.sha256.empty() && is_git_oid(spec.etag);
    add({object, spec.key, spec.model, spec.name, git ? spec.etag : spec.sha256, git,
         object->file()});
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, stored] : restored_) {
      if (!filter.matches(stored.meta.model, stored.meta.name)) continue;
      add({nullptr, key, stored.meta.model, stored.meta.name, stored.meta.sha256, false,
           stored.file});
    }
  }
  std::sort(targets.begin(), targets.end(),
            [](const VerifyTarget& a, const VerifyTarget& b) { return a.name < b.name; });
  return targets;
}

void Cache::Impl::start_verification(std::shared_ptr<Verification> job) {
  idle_.post([impl = shared_from_this(), job] {
    job->targets = impl->verify_targets(job->options.filter);
    job->progress.objects_total = job->targets.size();
    for (const VerifyTarget& target : job->targets) {
      job->progress.bytes_total += target.file->present_bytes();
    }
    impl->verify_next(job);
  });
}

// --- Upkeep ---

std::shared_ptr<CacheJob> Cache::optimize(std::function<void(const VerifyProgress&)> progress,
                                          std::function<void(Result<OptimizeReport>)> done) {
  auto verification = std::make_shared<Impl::Verification>();
  const auto job = verification->job;
  verification->on_progress = progress;
  const auto finish = [impl = impl_, done](OptimizeReport report) {
    report.orphans = impl->store_.remove_orphans();
    auto compacted = impl->store_.compact();
    if (!compacted) return done(tl::unexpected<Error>(compacted.error()));
    report.catalog = *compacted;
    done(std::move(report));
  };
  verification->done = [impl = impl_, job, progress, done, finish](Result<VerifyReport> verified) {
    if (!verified) return done(tl::unexpected<Error>(verified.error()));
    OptimizeReport report;
    report.verified = std::move(*verified);
    impl->start_migration(job, true, progress,
                          [impl, done, finish, report](Result<MigrationReport> moved) mutable {
                            if (!moved) return done(tl::unexpected<Error>(moved.error()));
                            report.rebalanced = std::move(*moved);
                            impl->idle_.post([finish, report] { finish(report); });
                          });
  };
  impl_->start_verification(std::move(verification));
  return job;
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
