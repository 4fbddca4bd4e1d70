#include "backend/origin/hedge.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "backend/origin/range_reader.h"

namespace nexus {

StallLimit::StallLimit(Bounds bounds) : bounds_(bounds) {}

void StallLimit::note(Duration longest_quiet, double bytes_per_s) {
  const auto keep = [](auto& samples, size_t& next, auto sample) {
    if (samples.size() < kSamplesMax) {
      samples.push_back(sample);
      return;
    }
    samples[next] = sample;
    next = (next + 1) % kSamplesMax;
  };
  std::lock_guard lock(mutex_);
  keep(samples_, next_, longest_quiet);
  if (bytes_per_s > 0) keep(rates_, next_rate_, bytes_per_s);
}

StallLimit::Duration StallLimit::limit() const {
  std::vector<Duration> samples;
  {
    std::lock_guard lock(mutex_);
    samples = samples_;
  }
  if (samples.size() < kSamplesMin) return bounds_.unknown;
  const size_t rank = (samples.size() * 99 + 99) / 100 - 1;
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(rank),
                   samples.end());
  return std::clamp(samples[rank] * 4, bounds_.least, bounds_.most);
}

double StallLimit::trickle() const {
  std::vector<double> rates;
  {
    std::lock_guard lock(mutex_);
    rates = rates_;
  }
  if (rates.size() < kSamplesMin) return 0;
  const auto slowest = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 100);
  std::nth_element(rates.begin(), slowest, rates.end());
  return std::min(*slowest / 8, kTrickleMost);
}

namespace {

using Clock = std::chrono::steady_clock;

// Of one read: an origin that is silent altogether is left to the stall detection of the requests themselves.
constexpr int kHedgesMax = 3;
constexpr uint64_t kRateBytes = 256 << 10;  // of a request that says something of the rate
constexpr std::chrono::milliseconds kChecksApart{500};

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
      .count();
}

// Sinks of both legs run on the client's thread, one after the other; the rest comes from anywhere and is guarded by
// mutex_. Nothing of a leg is called with the lock held: it may answer inside the call.
class HedgedRead final : public Transfer, public std::enable_shared_from_this<HedgedRead> {
 public:
  HedgedRead(std::shared_ptr<FileSource> source, ReadRequest request)
      : source_(std::move(source)), request_(std::move(request)), priority_(request_.priority) {}

  void begin() {
    watch();
    start_leg(0, request_.range, false);
  }

  void cancel() override {
    std::array<std::shared_ptr<Transfer>, 2> transfers;
    {
      std::lock_guard lock(mutex_);
      if (done_ || cancelled_) return;
      cancelled_ = true;
      transfers = {legs_[0].transfer, legs_[1].transfer};
    }
    for (const auto& transfer : transfers) {
      if (transfer) transfer->cancel();
    }
  }

  void set_priority(int priority) override {
    std::array<std::shared_ptr<Transfer>, 2> transfers;
    {
      std::lock_guard lock(mutex_);
      priority_ = priority;
      transfers = {legs_[0].transfer, legs_[1].transfer};
    }
    for (const auto& transfer : transfers) {
      if (transfer) transfer->set_priority(priority);
    }
  }

 private:
  // One of at most two requests for what is missing. A leg that lost is replaced by the next hedge; its late callbacks
  // are told apart by `serial`.
  struct Leg {
    uint64_t serial = 0;
    bool alive = false;
    std::shared_ptr<Transfer> transfer;
    int64_t quiet_since_ms = 0;  // 0: not on the wire
    int64_t longest_quiet_ms = 0;
    int64_t begun_ms = 0;  // this time on the wire
    uint64_t brought = 0;  // bytes, since then
    int64_t looked_ms = 0;  // the last look at the rate, and what was brought then
    uint64_t brought_then = 0;
  };

  void start_leg(size_t index, ByteRange range, bool hedge) {
    ReadRequest part;
    part.file = request_.file;
    part.range = range;
    part.flow = request_.flow;
    uint64_t serial;
    {
      std::lock_guard lock(mutex_);
      serial = ++serials_;
      legs_[index] = Leg{};
      legs_[index].serial = serial;
      legs_[index].alive = true;
      part.priority = priority_;
    }
    auto self = shared_from_this();
    part.sink = [self, index, serial](uint64_t, std::span<const std::byte> bytes) {
      return self->on_bytes(index, serial, bytes);
    };
    part.on_done = [self, index, serial](Result<void> result) {
      self->on_leg_done(index, serial, std::move(result));
    };
    RangeReadHooks hooks;
    hooks.hedge = hedge;
    hooks.on_wire = [self, index, serial](bool on) { self->on_wire(index, serial, on); };
    auto transfer = read_range(source_, std::move(part), std::move(hooks));
    bool unwanted;
    {
      std::lock_guard lock(mutex_);
      Leg& leg = legs_[index];
      unwanted = leg.serial != serial || !leg.alive || cancelled_;
      if (leg.serial == serial && leg.alive) leg.transfer = transfer;
    }
    if (unwanted) transfer->cancel();
  }

  void on_wire(size_t index, uint64_t serial, bool on) {
    std::lock_guard lock(mutex_);
    Leg& leg = legs_[index];
    if (leg.serial != serial) return;
    leg.quiet_since_ms = on ? now_ms() : 0;
    if (!on) return;
    leg.begun_ms = leg.looked_ms = leg.quiet_since_ms;
    leg.brought = leg.brought_then = 0;
  }

  Result<void> on_bytes(size_t index, uint64_t serial, std::span<const std::byte> bytes) {
    std::shared_ptr<Transfer> loser;
    uint64_t offset;
    {
      std::lock_guard lock(mutex_);
      Leg& leg = legs_[index];
      if (leg.serial != serial || !leg.alive) {
        return fail(Code::kCancelled, "another request was faster");
      }
      Leg& other = legs_[1 - index];
      if (other.alive) {
        other.alive = false;
        loser = std::move(other.transfer);
      }
      const int64_t now = now_ms();
      if (leg.quiet_since_ms != 0) {
        leg.longest_quiet_ms = std::max(leg.longest_quiet_ms, now - leg.quiet_since_ms);
        leg.quiet_since_ms = now;
      }
      leg.brought += bytes.size();
      offset = request_.range.offset + delivered_;
      delivered_ += bytes.size();
    }
    if (loser) loser->cancel();
    return request_.sink(offset, bytes);
  }

  void on_leg_done(size_t index, uint64_t serial, Result<void> result) {
    {
      std::lock_guard lock(mutex_);
      Leg& leg = legs_[index];
      if (leg.serial != serial || !leg.alive) return;
      leg.alive = false;
      leg.transfer = nullptr;
      if (legs_[1 - index].alive) return;  // the other one goes on
      if (result) {
        const auto ms = static_cast<double>(std::max<int64_t>(1, now_ms() - leg.begun_ms));
        source_->net().stall.note(StallLimit::Duration(leg.longest_quiet_ms),
                                  leg.brought < kRateBytes ? 0 : static_cast<double>(leg.brought) * 1000 / ms);
      }
    }
    finish(std::move(result));
  }

  void finish(Result<void> result) {
    std::function<void(Result<void>)> done;
    uint64_t timer;
    {
      std::lock_guard lock(mutex_);
      if (done_) return;
      done_ = true;
      timer = timer_;
      done = std::move(request_.on_done);
    }
    source_->net().timers.cancel(timer);
    request_.sink = nullptr;  // it may hold what holds this; no leg is alive to call it
    if (done) done(std::move(result));
  }

  void watch() {
    std::lock_guard lock(mutex_);
    if (done_) return;
    timer_ = source_->net().timers.post_after(kChecksApart, [weak = weak_from_this()] {
      if (auto self = weak.lock()) self->check();
    });
  }

  void check() {
    size_t index = 2;
    ByteRange rest;
    std::shared_ptr<Transfer> trickling;  // it would win any race for the next byte
    {
      std::lock_guard lock(mutex_);
      if (done_ || cancelled_ || hedges_ == kHedgesMax) return;  // watched no more
      rest = {request_.range.offset + delivered_, request_.range.length - delivered_};
      for (size_t i = 0; i < legs_.size() && rest.length > 0; ++i) {
        Leg& leg = legs_[i];
        if (!leg.alive || legs_[1 - i].alive || leg.quiet_since_ms == 0) continue;
        if (trickles(leg)) {
          index = 1 - i;
          leg.alive = false;
          trickling = std::move(leg.transfer);
        } else if (now_ms() - leg.quiet_since_ms >= source_->net().stall.limit().count()) {
          index = 1 - i;
        }
      }
      if (index < 2) ++hedges_;
    }
    if (index < 2) {
      ++source_->net().hedges;
      spdlog::debug("{}: {} for a while: asking again", source_->options().label,
                    trickling ? "next to nothing came" : "nothing came");
      start_leg(index, rest, true);
    }
    if (trickling) trickling->cancel();
    watch();
  }

  // Over the time that it may also be quiet. One that brings nothing does not: it may wait for its first byte, and with
  // a second request beside it there is a race that is fair. Holds mutex_.
  bool trickles(Leg& leg) const {
    const int64_t now = now_ms();
    const int64_t ms = now - leg.looked_ms;
    if (ms < source_->net().stall.limit().count()) return false;
    const uint64_t bytes = leg.brought - leg.brought_then;
    leg.looked_ms = now;
    leg.brought_then = leg.brought;
    return bytes > 0 && static_cast<double>(bytes) * 1000 / static_cast<double>(ms) < source_->net().stall.trickle();
  }

  const std::shared_ptr<FileSource> source_;
  ReadRequest request_;

  std::mutex mutex_;  // guards all below
  std::array<Leg, 2> legs_;
  uint64_t serials_ = 0;
  uint64_t delivered_ = 0;
  int hedges_ = 0;
  int priority_;
  uint64_t timer_ = 0;
  bool cancelled_ = false, done_ = false;
};

}  // namespace

std::shared_ptr<Transfer> read_hedged(std::shared_ptr<FileSource> source, ReadRequest request) {
  auto read = std::make_shared<HedgedRead>(std::move(source), std::move(request));
  read->begin();
  return read;
}

}  // namespace nexus
