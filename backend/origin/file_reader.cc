#include "backend/origin/file_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

namespace nexus {

namespace {

constexpr size_t kBufferBytes = 1 << 20;
// After this much a long read goes to the back of the pool's queue, so that short ones get their
// turn.
constexpr uint64_t kTurnBytes = 16 << 20;

class FileRead final : public Transfer, public std::enable_shared_from_this<FileRead> {
 public:
  FileRead(ReadRequest request, ThreadPool& pool) : request_(std::move(request)), pool_(pool) {}

  // Only unfinished when the pool was stopped before our turn.
  ~FileRead() override {
    finish(failure(Code::kCancelled, "the origin is closing"));
    if (fd_ >= 0) close(fd_);
  }

  void cancel() override { cancelled_ = true; }
  void set_priority(int) override {}  // a pool has no order

  void next_turn() {
    pool_.post([self = shared_from_this()] { self->turn(); });
  }

 private:
  tl::unexpected<Error> failure(Code code, const std::string& why) const {
    return fail(code, "read " + request_.file.local_path + " [" +
                          std::to_string(request_.range.offset) + ", " +
                          std::to_string(request_.range.end()) + "): " + why);
  }

  Result<void> open_file() {
    fd_ = open(request_.file.local_path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) {
      const int error = errno;
      return failure(error == ENOENT   ? Code::kStale
                     : error == EACCES ? Code::kAccess
                                       : Code::kDisk,
                     std::strerror(error));
    }
    struct stat info {};
    if (fstat(fd_, &info) != 0) return failure(Code::kDisk, std::strerror(errno));
    if (!S_ISREG(info.st_mode)) return failure(Code::kStale, "no longer a file");
    if (static_cast<uint64_t>(info.st_size) != request_.file.size) {
      return failure(Code::kStale, "it has " + std::to_string(info.st_size) +
                                       " bytes now, and had " + std::to_string(request_.file.size));
    }
    if (request_.file.etag.starts_with("stat:") && local_etag(info) != request_.file.etag) {
      return failure(Code::kStale, "it was changed");
    }
    return {};
  }

  void turn() {
    if (cancelled_) return finish(failure(Code::kCancelled, "cancelled"));
    if (fd_ < 0) {
      if (auto opened = open_file(); !opened) return finish(opened);
    }
    thread_local std::vector<std::byte> buffer(kBufferBytes);
    for (uint64_t this_turn = 0; done_ < request_.range.length;) {
      if (cancelled_) return finish(failure(Code::kCancelled, "cancelled"));
      if (this_turn >= kTurnBytes) return next_turn();
      const size_t want = std::min<uint64_t>(buffer.size(), request_.range.length - done_);
      const ssize_t got =
          pread(fd_, buffer.data(), want, static_cast<off_t>(request_.range.offset + done_));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return finish(failure(Code::kDisk, std::strerror(errno)));
      if (got == 0) return finish(failure(Code::kStale, "it became shorter"));
      auto taken = request_.sink(request_.range.offset + done_,
                                 std::span(buffer).first(static_cast<size_t>(got)));
      if (!taken) return finish(taken);
      done_ += static_cast<uint64_t>(got);
      this_turn += static_cast<uint64_t>(got);
    }
    finish({});
  }

  void finish(Result<void> result) {
    auto done = std::exchange(request_.on_done, nullptr);
    request_.sink = nullptr;  // it may hold what holds this transfer
    if (done) done(std::move(result));
  }

  ReadRequest request_;
  ThreadPool& pool_;
  // One turn runs at a time; the pool's queue orders them.
  int fd_ = -1;
  uint64_t done_ = 0;
  std::atomic<bool> cancelled_{false};
};

}  // namespace

std::string local_etag(const struct stat& info) {
  return "stat:" + std::to_string(info.st_size) + "-" + std::to_string(info.st_mtim.tv_sec) + "." +
         std::to_string(info.st_mtim.tv_nsec) + "-" + std::to_string(info.st_ino);
}

std::shared_ptr<Transfer> read_local_file(ReadRequest request, ThreadPool& pool) {
  auto read = std::make_shared<FileRead>(std::move(request), pool);
  read->next_turn();
  return read;
}

}  // namespace nexus
