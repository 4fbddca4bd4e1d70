// Copies of complete objects in the RAM tier: making them, and dropping the oldest for others.
//
// A copy is made by one pass over the object's file: each chunk lands in the tier (by O_DIRECT
// where the caller's bulk_read does that) and is hashed there before anybody is served from it. So
// an object that an earlier run left, whose hashes have to be checked before its first use, costs
// no second read.
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cache/impl.h"
#include "backend/cache/promotion_plan.h"

namespace nexus {

namespace {

constexpr std::chrono::seconds kWatchEvery{2};

}  // namespace

struct Cache::Impl::Promotion {
  Promotion(std::shared_ptr<Object> object_, std::shared_ptr<ObjectFile> file_)
      : object(std::move(object_)), file(std::move(file_)) {}

  const std::shared_ptr<Object> object;
  const std::shared_ptr<ObjectFile> file;  // where the bytes come from
  // Set before the first step is posted.
  std::shared_ptr<ObjectFile> copy;
  std::optional<RamMapping> mapping;
  PromotionPlan plan;
  std::atomic<uint64_t> next{0};        // where the next step begins
  std::atomic<uint64_t> steps_left{1};  // each reader counts as one
  std::atomic<bool> given_up{false};
  // A read that hangs may still write into the mapping, which then stays until that has returned.
  std::atomic<bool> abandoned{false};

  std::mutex mutex;              // guards the two below
  std::optional<Error> refused;  // no memory: nothing is known of the file
  std::optional<Error> bad;      // the file cannot be read, or its bytes are wrong
};

bool Cache::Impl::promote(const std::shared_ptr<Object>& object) {
  if (!options_.ram || stopping_) return false;
  if (object->promoting_) return true;
  const auto file = object->file();
  if (!file || !file->complete() || file->zone() < 0 || file->size() == 0) return false;
  if (object->checking_chunks_ || object->ram_copy()) return false;
  if (!options_.ram->could_hold(file->size())) return false;
  drop_copies(file->size());
  object->promoting_ = true;
  promote_.post([this, self = shared_from_this(),
                 promotion = std::make_shared<Promotion>(object, file)] { fill_copy(promotion); });
  return true;
}

void Cache::Impl::fill_copy(const std::shared_ptr<Promotion>& promotion) {
  const ObjectFile& file = *promotion->file;
  const auto made = [&]() -> Result<void> {
    auto copy = options_.ram->create(file.key(), file.size(), RamTier::Memory::kByPopulate);
    if (!copy) return tl::unexpected<Error>(copy.error());
    auto mapping = RamMapping::map(**copy);
    if (!mapping) return tl::unexpected<Error>(mapping.error());
    promotion->copy = std::move(*copy);
    promotion->mapping.emplace(std::move(*mapping));
    const BulkShape shape = options_.bulk_shape ? options_.bulk_shape(file) : BulkShape{};
    promotion->plan = plan_promotion(shape, file.size());
    return {};
  }();
  if (!made) {
    std::lock_guard lock(promotion->mutex);
    promotion->refused = made.error();
    return end_step(promotion);
  }
  // Several, so that one step's blocks are on their way when another's last ones arrive.
  for (int i = 1; i < promotion->plan.readers; ++i) {
    ++promotion->steps_left;
    promote_.post([this, self = shared_from_this(), promotion] { read_steps(promotion); });
  }
  read_steps(promotion);
}

void Cache::Impl::read_steps(const std::shared_ptr<Promotion>& promotion) {
  const ObjectFile& file = *promotion->file;
  while (!promotion->given_up && !stopping_) {
    const uint64_t begin = promotion->next.fetch_add(promotion->plan.step_bytes);
    if (begin >= file.size()) break;
    const uint64_t end = std::min(begin + promotion->plan.step_bytes, file.size());
    if (auto populated = promotion->mapping->populate(begin, end - begin); !populated) {
      promotion->given_up = true;
      std::lock_guard lock(promotion->mutex);
      promotion->refused = populated.error();
      break;
    }
    const auto into = promotion->mapping->bytes().subspan(begin, end - begin);
    const auto read = file.guarded([this, self = shared_from_this(), promotion, begin, into] {
      const ObjectFile& from = *promotion->file;
      return options_.bulk_read ? options_.bulk_read(from, begin, into) : from.read(begin, into);
    });
    if (!read || !*read) {
      promotion->given_up = true;
      std::lock_guard lock(promotion->mutex);
      promotion->bad = read ? read->error() : file.hang_error("read").value();
      if (!read) promotion->abandoned = true;
      break;
    }
    for (uint64_t at = begin; at < end; at += kHashBytes) {
      ++promotion->steps_left;
      pool_.post(
          [this, self = shared_from_this(), promotion, at, stop = std::min(at + kHashBytes, end)] {
            check_copied(*promotion, at, stop);
            end_step(promotion);
          });
    }
  }
  end_step(promotion);
}

void Cache::Impl::check_copied(Promotion& promotion, uint64_t begin, uint64_t end) {
  for (uint64_t at = begin; at < end && !promotion.given_up; at += kChunkBytes) {
    const uint64_t chunk = at / kChunkBytes;
    const auto bytes = promotion.mapping->bytes().subspan(at, promotion.file->chunk_length(chunk));
    if (XXH3_64bits(bytes.data(), bytes.size()) == promotion.file->chunk_hash(chunk)) continue;
    promotion.given_up = true;
    std::lock_guard lock(promotion.mutex);
    promotion.bad = Error{Code::kCorrupt, "chunk " + std::to_string(chunk) + " of " +
                                              promotion.file->path() + " is not what it was"};
  }
}

void Cache::Impl::end_step(const std::shared_ptr<Promotion>& promotion) {
  if (promotion->steps_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  if (promotion->mapping && !promotion->given_up && !stopping_) {
    // What O_DIRECT wrote behind the end, for whoever maps the last page.
    const auto bytes = promotion->mapping->bytes();
    const uint64_t size = promotion->file->size();
    std::memset(bytes.data() + size, 0, bytes.size() - size);
  }
  if (!promotion->abandoned) promotion->mapping.reset();
  core_.post([this, promotion] { end_promotion(promotion); });
}

void Cache::Impl::end_promotion(const std::shared_ptr<Promotion>& promotion) {
  const auto& object = promotion->object;
  object->promoting_ = false;
  if (stopping_) return;
  if (promotion->refused) {
    spdlog::debug("{}: not copied into the RAM tier: {}", object->spec().name,
                  promotion->refused->what);
    if (object->file() == promotion->file && !object->trusted_ && object->runs_.empty()) {
      return check_chunks_on_disk(object);
    }
    return advance(object);
  }
  if (promotion->bad) {
    chunks_checked(object, promotion->file, tl::unexpected<Error>(*promotion->bad));
    return advance(object);
  }
  promotion->copy->restore(promotion->file->bitmap(), promotion->file->hashes());
  {
    std::lock_guard lock(object->mutex_);
    if (object->file_ == promotion->file) object->ram_ = promotion->copy;
  }
  chunks_checked(object, promotion->file, {});
  advance(object);
}

void Cache::Impl::promote_if_hot(const std::shared_ptr<Object>& object) {
  // The first use is whoever fetched it, or a look; what was used again may be so once more.
  if (!options_.ram || object->uses_ < 2 || !object->trusted_) return;
  const auto file = object->file();
  if (!file || !file->complete() || file->zone() < 0) return;
  const RamTier& ram = *options_.ram;
  if (ram.used_bytes() + ram.charge_of(file->size()) <= ram.limit_bytes()) promote(object);
}

void Cache::Impl::drop_copies(uint64_t bytes) {
  const RamTier& ram = *options_.ram;
  drop_copies_until([&] { return ram.used_bytes() + ram.charge_of(bytes) <= ram.limit_bytes(); });
}

// Copies cannot be swapped out, so when the machine runs short they go before something is killed.
void Cache::Impl::watch_memory() {
  drop_copies_until([] { return !RamTier::memory_is_short(0); });
  core_.post_after(kWatchEvery, [this] { watch_memory(); });
}

void Cache::Impl::drop_copies_until(const std::function<bool()>& enough) {
  if (enough()) return;
  std::vector<std::pair<int64_t, std::shared_ptr<Object>>> victims;
  for (auto& object : all_objects()) {
    if (object->opens_ == 0 && object->ram_copy()) {
      victims.emplace_back(object->last_access_ms_, std::move(object));
    }
  }
  std::sort(victims.begin(), victims.end());
  for (const auto& [used, object] : victims) {
    if (enough()) return;
    auto copy = object->ram_copy();
    // A mapping outlives its handle: dropping the copy would free nothing.
    if (!copy || !RamTier::idle(*copy)) continue;
    ++evictions_;
    std::lock_guard lock(object->mutex_);
    object->ram_.reset();
  }
}

}  // namespace nexus
