#include "fs/parking.h"

#include <cerrno>
#include <cstdint>

#include "fs/edge.h"

namespace nexus::fs {

std::shared_ptr<Parked> Parking::park(fuse_req_t request) {
  const fuse_ctx* context = fuse_req_ctx(request);
  if (!limits_.park(context->uid)) {
    fuse_reply_err(request, EAGAIN);
    return nullptr;
  }
  auto parked = std::make_shared<Parked>();
  parked->request = request;
  parked->uid = context->uid;
  parked->tid = context->pid;
  bool closed;
  {
    std::lock_guard lock(mutex_);
    closed = closed_;
    if (!closed) {
      parked->id = next_id_++;
      parked_.emplace(parked->id, parked);
    }
  }
  if (closed) {
    limits_.unpark(parked->uid);
    fuse_reply_err(request, EIO);
    return nullptr;
  }
  // libfuse may call on_interrupt from inside this call and goes on using the request behind it, so
  // nobody may answer before it returns: an interrupt that comes here is only noted.
  fuse_req_interrupt_func(request, &Parking::on_interrupt, reinterpret_cast<void*>(parked->id));
  bool interrupted;
  {
    std::lock_guard lock(parked->mutex);
    parked->armed = true;
    interrupted = parked->interrupted;
  }
  {
    // close() leaves alone what is not armed yet.
    std::lock_guard lock(mutex_);
    closed = closed_;
  }
  if (!interrupted && !closed) return parked;
  if (const auto right = finish(parked)) fuse_reply_err(request, closed ? EIO : EINTR);
  return nullptr;
}

Parking::Answer Parking::finish(const std::shared_ptr<Parked>& parked) {
  if (parked->answered.exchange(true)) return Answer(nullptr);
  {
    std::lock_guard lock(mutex_);
    parked_.erase(parked->id);
    ++answering_;
  }
  limits_.unpark(parked->uid);
  return Answer(this);
}

Parking::Answer::~Answer() {
  if (!parking_) return;
  std::lock_guard lock(parking_->mutex_);
  if (--parking_->answering_ == 0) parking_->answered_.notify_all();
}

void Parking::drain() {
  std::unique_lock lock(mutex_);
  answered_.wait(lock, [this] { return answering_ == 0; });
}

void Parking::close() {
  std::vector<std::shared_ptr<Parked>> waiting;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    for (auto& [id, parked] : parked_) waiting.push_back(parked);
  }
  for (auto& parked : waiting) {
    {
      std::lock_guard lock(parked->mutex);
      if (!parked->armed) continue;  // its serving thread sees closed_
    }
    if (const auto right = finish(parked)) fuse_reply_err(parked->request, EIO);
    parked->cancellation->cancel();
  }
}

void Parking::on_interrupt(fuse_req_t request, void* id) {
  Edge::of(request).parking().interrupt(reinterpret_cast<uint64_t>(id));
}

// Called with libfuse's lock of the request held: asks for the stop, no more.
void Parking::interrupt(uint64_t id) {
  auto parked = find(id);
  if (!parked) return;
  {
    std::lock_guard lock(parked->mutex);
    if (!parked->armed) {
      parked->interrupted = true;
      return;
    }
  }
  aux_.post([this, parked] {
    if (const auto right = finish(parked)) fuse_reply_err(parked->request, EINTR);
    parked->cancellation->cancel();
  });
}

std::shared_ptr<Parked> Parking::find(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto it = parked_.find(id);
  return it == parked_.end() ? nullptr : it->second;
}

}  // namespace nexus::fs
