// A hub on loopback with a CDN of its own, and helpers that let a test read as a story.
#pragma once

#include <gtest/gtest.h>

#include <map>

#include "backend/origin/hub.h"
#include "backend/origin/retry.h"
#include "tests/unit/net_test_server.h"

namespace nexus::test {

inline const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";
inline const std::string kSha = std::string(60, 'a') + "0123";

struct ReadOutcome {
  Result<void> result = fail(Code::kInvalid, "none");
  std::string bytes;
};

// One read; its bytes are checked for order.
class Reading {
 public:
  Reading(Origin& origin, const Snapshot& snapshot, const OriginFile& file, ByteRange range,
          int priority = 0) {
    ReadRequest request;
    request.file = file;
    request.range = range;
    request.priority = priority;
    request.sink = [this, range](uint64_t offset,
                                 std::span<const std::byte> piece) -> Result<void> {
      EXPECT_EQ(offset, range.offset + bytes_.size());
      EXPECT_FALSE(done_.ready());
      bytes_.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      received.add(static_cast<int>(piece.size()));
      return sink_error ? tl::unexpected(*sink_error) : Result<void>();
    };
    request.on_done = [this](Result<void> result) {
      done_.set({std::move(result), std::move(bytes_)});
    };
    transfer = origin.read(snapshot, std::move(request));
  }
  ReadOutcome wait() { return done_.get(); }
  bool ready() { return done_.ready(); }

  Counter received;
  std::optional<Error> sink_error;
  std::shared_ptr<Transfer> transfer;

 private:
  std::string bytes_;
  Later<ReadOutcome> done_;
};

inline Result<Snapshot> load(Origin& origin, const std::string& repo, const std::string& revision) {
  Later<Result<Snapshot>> done;
  origin.load(repo, revision, [&](Result<Snapshot> s) { done.set(std::move(s)); });
  return done.get();
}

// The hub answers org/m at main; "model.safetensors" is in LFS, on the CDN.
class HubTest : public ::testing::Test {
 public:
  using Request = httplib::Request;
  using Response = httplib::Response;

  void SetUp() override {
    data = pattern_bytes(1 << 20);
    hub.http.set_pre_routing_handler([this](const Request& req, Response& res) {
      {
        std::lock_guard lock(mutex);
        seen.push_back(req.method + " " + req.target);
        hub_tokens.insert(req.get_header_value("Authorization"));
      }
      if (on_hub && on_hub(req, res)) return httplib::Server::HandlerResponse::Handled;
      return httplib::Server::HandlerResponse::Unhandled;
    });
    hub.http.Get("/api/models/org/m/revision/main", [this](const Request&, Response& res) {
      res.set_content(info, "application/json");
    });
    hub.http.Get("/org/m/resolve/" + kCommit + "/model.safetensors",
                 [this](const Request&, Response& res) {
                   resolves.add();
                   res.set_header("X-Repo-Commit", kCommit);
                   res.set_header("X-Linked-Etag", "\"" + kSha + "\"");
                   res.set_header("X-Linked-Size", std::to_string(data.size()));
                   res.set_redirect(cdn.url("/blob?sig=" + std::to_string(resolves.value())));
                 });
    hub.http.Get("/org/m/resolve/" + kCommit + "/config.json", [](const Request&, Response& res) {
      res.set_header("X-Repo-Commit", kCommit);
      res.set_content("{\"a\": 1}", "text/plain");
    });
    cdn.http.Get("/blob", [this](const Request& req, Response& res) {
      {
        std::lock_guard lock(mutex);
        cdn_queries.push_back(req.target + " " + req.get_header_value("Range"));
        cdn_tokens.insert(req.get_header_value("Authorization"));
      }
      const int number = blobs.add();
      if (on_blob && on_blob(number, req, res)) {
        const_cast<Request&>(req).ranges.clear();  // httplib leaves the body as it is
        return;
      }
      res.set_header("ETag", "\"cdn-1\"");
      res.set_content(data, "application/octet-stream");
    });
    options.retry_base = std::chrono::milliseconds(1);
    options.out_of_reach = std::chrono::milliseconds(60000);
  }

  // A timer that comes while the members go would find its client gone.
  void TearDown() override { timers.stop(); }

  // Servers begin here, so that a test may add handlers before.
  std::shared_ptr<Origin> origin() {
    if (!hub.http.is_running()) {
      hub.start();
      cdn.start();
    }
    if (options.endpoint.empty()) options.endpoint = hub.url();
    return make_hub_origin(options, http, timers);
  }
  Snapshot loaded(Origin& from) {
    auto snapshot = load(from, "org/m", "main");
    EXPECT_TRUE(snapshot) << snapshot.error().what;
    return snapshot ? *snapshot : Snapshot{};
  }
  static OriginFile file(const Snapshot& snapshot, const std::string& path) {
    for (const auto& f : snapshot.files) {
      if (f.path == path) return f;
    }
    ADD_FAILURE() << "no " << path;
    return {};
  }
  ReadOutcome read(Origin& from, const Snapshot& snapshot, const std::string& path,
                   ByteRange range) {
    return Reading(from, snapshot, file(snapshot, path), range).wait();
  }
  // Loads, reads a range of the weights, and wants an error.
  Error failed_read(ByteRange range = {0, 1 << 20}) {
    auto from = origin();
    ReadOutcome outcome = read(*from, loaded(*from), "model.safetensors", range);
    EXPECT_FALSE(outcome.result);
    return outcome.result ? Error{Code::kInvalid, "no error"} : outcome.result.error();
  }
  // Loads, reads a range of the weights, and wants its bytes.
  void expect_bytes(ByteRange range = {0, 1 << 20}) {
    auto from = origin();
    ReadOutcome outcome = read(*from, loaded(*from), "model.safetensors", range);
    ASSERT_TRUE(outcome.result) << outcome.result.error().what;
    EXPECT_TRUE(outcome.bytes == data.substr(range.offset, range.length));
  }
  static void partial(Response& res, const std::string& content_range, const std::string& body) {
    res.status = 206;
    res.set_header("Content-Range", content_range);
    res.set_content(body, "application/octet-stream");
  }

  std::string info = R"({"id": "org/m", "sha": ")" + kCommit + R"(", "private": false,
    "gated": false, "lastModified": "2024-01-31T12:34:56.000Z", "siblings": [
      {"rfilename": "model.safetensors", "size": 1048576, "blobId": "x",
       "lfs": {"sha256": ")" +
                     kSha + R"(", "size": 1048576}},
      {"rfilename": "config.json", "size": 8, "blobId": "1111111111111111111111111111111111111111"}]})";
  std::string data;
  std::function<bool(const Request&, Response&)> on_hub;        // true: it answered
  std::function<bool(int, const Request&, Response&)> on_blob;  // number of the request from 1
  Counter resolves, blobs;
  std::mutex mutex;  // guards the four below
  std::vector<std::string> seen;
  std::set<std::string> hub_tokens, cdn_tokens;
  std::vector<std::string> cdn_queries;

  HubOptions options;
  TestServer hub, cdn;
  LoopExecutor timers{"timers"};
  HttpClient http{[] {
    HttpOptions o;
    o.stall_time = std::chrono::seconds(2);
    return o;
  }()};
};

}  // namespace nexus::test
