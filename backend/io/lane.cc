#include "backend/io/lane.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace nexus::io {

namespace {
constexpr size_t kPieceBytes = 1 << 30;  // the kernel's limit for one fixed buffer
}  // namespace

std::unique_ptr<Lane> Lane::start(const EngineSettings& settings, const EngineOptions& options,
                                  std::string* reason) {
  std::unique_ptr<Lane> lane(new Lane(settings));
  for (unsigned i = 0; i < settings.threads; ++i) {
    auto thread = std::make_unique<RingThread>(*lane, options);
    if (const int error = thread->wait_until_started(); error != 0) {
      // Rings are a limited resource: what there is will do, but for none.
      lane->ring_reason_ = "io_uring_setup: " + std::generic_category().message(error);
      if (!lane->threads_.empty()) break;
      *reason = lane->ring_reason_;
      return nullptr;
    }
    if (!thread->polling_reason().empty()) lane->ring_reason_ = thread->polling_reason();
    lane->threads_.push_back(std::move(thread));
  }
  return lane;
}

Lane::~Lane() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  for (auto& thread : threads_) thread->wake();
  threads_.clear();
}

bool Lane::stopping() const {
  std::lock_guard lock(mutex_);
  return stopping_;
}

void Lane::run(Call& call) {
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(&call);
  }
  // Only as many threads as there are blocks.
  const size_t blocks = (call.length + settings_.block_size - 1) / settings_.block_size;
  for (size_t i = 0; i < std::min(blocks, threads_.size()); ++i) threads_[i]->wake();
  std::unique_lock lock(mutex_);
  call.finished.wait(lock, [&] { return call.done; });
}

bool Lane::take(Block& block) {
  std::lock_guard lock(mutex_);
  if (waiting_.empty()) return false;
  Call* const call = waiting_.front();
  waiting_.pop_front();
  const size_t length = std::min<size_t>(settings_.block_size, call->length - call->taken);
  block = {call, call->offset + call->taken, call->data + call->taken,
           static_cast<uint32_t>(length)};
  call->taken += length;
  ++call->in_flight;
  if (call->taken < call->length) waiting_.push_back(call);  // the others have their turn first
  return true;
}

void Lane::finish(const Block& block, int error, bool ended, bool direct_refused) {
  std::lock_guard lock(mutex_);
  Call& call = *block.call;
  if (direct_refused) call.direct_refused = true;
  if ((error != 0 || ended) && call.error == 0 && !call.ended) {
    call.error = error;
    call.ended = ended;
    call.error_offset = block.offset;
    std::erase(waiting_, &call);
  }
  --call.in_flight;
  const bool failed = call.error != 0 || call.ended;
  if (call.in_flight == 0 && (failed || call.taken == call.length)) {
    call.done = true;
    call.finished.notify_one();
  }
}

Result<void> Lane::register_memory(std::span<std::byte> memory) {
  std::lock_guard lock(register_mutex_);
  for (auto& thread : threads_) {
    for (size_t at = 0; at < memory.size(); at += kPieceBytes) {
      const auto piece = memory.subspan(at, std::min(kPieceBytes, memory.size() - at));
      const int error = thread->register_piece(piece);
      if (error == 0) continue;
      for (auto& other : threads_) other->unregister_from(memory.data(), memory.size());
      return fail(error == ENOMEM || error == ENOSPC ? Code::kLimit : Code::kUnsupported,
                  "io_uring_register of " + std::to_string(piece.size()) +
                      " bytes: " + std::generic_category().message(error));
    }
  }
  return {};
}

void Lane::unregister_memory(const std::byte* start, size_t length) {
  std::lock_guard lock(register_mutex_);
  for (auto& thread : threads_) thread->unregister_from(start, length);
}

Measured Lane::measured() const {
  Measured all;
  for (const auto& thread : threads_) {
    all.submit.merge(thread->measured().submit);
    all.complete.merge(thread->measured().complete);
  }
  return all;
}

}  // namespace nexus::io
