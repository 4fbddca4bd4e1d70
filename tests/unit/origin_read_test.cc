// What a read survives, and what it refuses.
#include <gtest/gtest.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "tests/unit/origin_test_support.h"

namespace nexus {
namespace {

using test::Counter;
using test::Gate;
using test::HubTest;
using test::kCommit;
using test::kSha;
using test::load;
using test::Reading;
using test::ReadOutcome;

using OriginRead = HubTest;

// --- what is tried again

TEST_F(OriginRead, ServerErrorsAndRateLimitsAreTriedAgain) {
  on_blob = [](int number, const Request&, Response& res) {
    const int statuses[] = {500, 503, 429, 408};
    if (number > 4) return false;
    res.status = statuses[number - 1];
    return true;
  };
  expect_bytes();
  EXPECT_EQ(blobs.value(), 5);
  EXPECT_EQ(resolves.value(), 1);
}

TEST_F(OriginRead, TriesAreCountedAndThenItIsOffline) {
  options.retry_max = 3;
  on_blob = [](int, const Request&, Response& res) {
    res.status = 503;
    return true;
  };
  Error error = failed_read();
  EXPECT_EQ(error.code, Code::kOffline);
  EXPECT_NE(error.what.find("HTTP 503 (3 tries)"), std::string::npos) << error.what;
  EXPECT_EQ(blobs.value(), 3);
}

TEST_F(OriginRead, AResolutionIsTriedAgainToo) {
  on_hub = [this](const Request& req, Response& res) {
    if (req.path.find("/resolve/") == std::string::npos || resolves.add() > 2) return false;
    res.status = 502;
    return true;
  };
  expect_bytes();
}

TEST_F(OriginRead, AListingIsTriedAgainButNotForLong) {
  Counter asked;
  on_hub = [&](const Request&, Response& res) {
    asked.add();
    res.status = 503;
    return true;
  };
  auto from = origin();
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kOffline);
  EXPECT_EQ(asked.value(), 2);
}

TEST_F(OriginRead, AListingDoesNotWaitOutALongRateLimit) {
  on_hub = [](const Request&, Response& res) {
    res.status = 429;
    res.set_header("Retry-After", "300");
    return true;
  };
  auto from = origin();
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_NE(snapshot.error().what.find("HTTP 429"), std::string::npos);
}

TEST_F(OriginRead, ABrokenTransferIsResumedBehindWhatCame) {
  on_blob = [this](int number, const Request& req, Response& res) {
    if (number > 1) return false;
    EXPECT_EQ(req.get_header_value("Range"), "bytes=100-1000099");
    res.status = 206;
    res.set_header("Content-Range", "bytes 100-1000099/1048576");
    res.set_content_provider(1000000, "application/octet-stream",
                             [this](size_t offset, size_t, httplib::DataSink& sink) {
                               if (offset >= 400000) return false;  // the connection breaks
                               return sink.write(data.data() + 100 + offset, 100000);
                             });
    return true;
  };
  expect_bytes({100, 1000000});
  EXPECT_EQ(cdn_queries.at(1), "/blob?sig=1 bytes=400100-1000099");
}

TEST_F(OriginRead, ABodyThatEndsEarlyIsResumed) {
  on_blob = [this](int number, const Request&, Response& res) {
    if (number > 1) return false;
    res.status = 206;
    res.set_header("Content-Range", "bytes 0-1048575/1048576");
    res.set_chunked_content_provider("application/octet-stream",
                                     [this](size_t offset, httplib::DataSink& sink) {
                                       if (offset == 0) {
                                         sink.write(data.data(), 5000);
                                       } else {
                                         sink.done();
                                       }
                                       return true;
                                     });
    return true;
  };
  expect_bytes();
  EXPECT_EQ(cdn_queries.at(1), "/blob?sig=1 bytes=5000-1048575");
}

TEST_F(OriginRead, AServerThatAlwaysEndsEarlyIsGivenUp) {
  on_blob = [](int, const Request&, Response& res) {
    partial(res, "bytes 0-1048575/1048576", "");
    return true;
  };
  EXPECT_EQ(failed_read().code, Code::kOrigin);  // an empty body with a length is refused
}


// --- locations

TEST_F(OriginRead, AnExpiredLocationIsRenewedOnce) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ASSERT_TRUE(read(*from, snapshot, "model.safetensors", {0, 10}).result);
  on_blob = [](int, const Request& req, Response& res) {
    if (req.get_param_value("sig") != "1") return false;
    res.status = 403;
    return true;
  };
  ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {10, 10});
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_EQ(outcome.bytes, data.substr(10, 10));
  EXPECT_EQ(resolves.value(), 2);
}

TEST_F(OriginRead, RenewalsEndAfterThree) {
  on_blob = [](int, const Request&, Response& res) {
    res.status = 403;
    return true;
  };
  Error error = failed_read();
  EXPECT_NE(error.what.find("HTTP 403"), std::string::npos);
  EXPECT_EQ(error.what.find("sig="), std::string::npos);
  EXPECT_EQ(resolves.value(), 4);
  EXPECT_EQ(blobs.value(), 4);
}

TEST_F(OriginRead, AllReadersOfAFileShareOneResolution) {
  Gate gate;
  Counter asked;
  on_hub = [&asked, gate](const Request& req, Response&) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    asked.add();
    gate.wait();
    return false;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  const OriginFile weights = file(snapshot, "model.safetensors");
  std::list<Reading> readings;
  for (uint64_t i = 0; i < 20; ++i) {
    readings.emplace_back(*from, snapshot, weights, ByteRange{i * 100, 100});
  }
  ASSERT_TRUE(asked.wait_for(1));
  gate.open();
  uint64_t i = 0;
  for (auto& reading : readings) {
    EXPECT_EQ(reading.wait().bytes, data.substr(i++ * 100, 100));
  }
  EXPECT_EQ(asked.value(), 1);
}

TEST_F(OriginRead, AReaderThatLeavesDoesNotTakeTheResolutionWithIt) {
  Gate gate;
  Counter asked;
  on_hub = [&asked, gate](const Request& req, Response&) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    asked.add();
    gate.wait();
    return false;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  const OriginFile weights = file(snapshot, "model.safetensors");
  Reading first(*from, snapshot, weights, {0, 10});
  Reading second(*from, snapshot, weights, {0, 10});
  ASSERT_TRUE(asked.wait_for(1));
  first.transfer->cancel();
  EXPECT_EQ(first.wait().result.error().code, Code::kCancelled);
  gate.open();
  EXPECT_TRUE(second.wait().result);
  EXPECT_EQ(asked.value(), 1);
}


// --- what is refused

struct BadAnswer {
  const char* name;
  std::function<void(HubTest::Response&, const std::string& data)> answer;
  const char* says;
};

TEST_F(OriginRead, WrongAnswersAreRefusedAndNotAskedForAgain) {
  const std::string octets = "application/octet-stream";
  const std::vector<BadAnswer> cases = {
      {"another range",
       [](Response& r, const std::string& d) {
         partial(r, "bytes 1-100/1048576", d.substr(0, 100));
       },
       "range"},
      {"a shorter range",
       [](Response& r, const std::string& d) { partial(r, "bytes 0-49/1048576", d.substr(0, 50)); },
       "range"},
      {"another total",
       [](Response& r, const std::string& d) {
         partial(r, "bytes 0-99/1048577", d.substr(0, 100));
       },
       "1048577 bytes there, but the listing says 1048576"},
      {"no total",
       [](Response& r, const std::string& d) { partial(r, "bytes 0-99/*", d.substr(0, 100)); },
       "Content-Range"},
      {"nonsense",
       [](Response& r, const std::string& d) { partial(r, "elephants", d.substr(0, 100)); },
       "Content-Range"},
      {"206 without Content-Range",
       [octets](Response& r, const std::string& d) {
         r.status = 206;
         r.set_content(d.substr(0, 100), octets);
       },
       "Content-Range"},
      {"a long body",
       [](Response& r, const std::string& d) {
         partial(r, "bytes 0-99/1048576", d.substr(0, 200));
       },
       "200 bytes for a range of 100"},
      {"a page",
       [](Response& r, const std::string&) {
         r.status = 200;
         r.set_content("<html>log in</html>", "text/html");
       },
       "text/html"},
      {"a page of the right size",
       [](Response& r, const std::string& d) {
         r.status = 200;
         r.set_content(std::string(d.size(), ' '), "text/html; charset=utf-8");
       },
       "text/html"},
      {"200 of another size",
       [octets](Response& r, const std::string& d) {
         r.status = 200;
         r.set_content(d.substr(1), octets);
       },
       "1048575"},
      {"204", [](Response& r, const std::string&) { r.status = 204; }, "204"},
      {"416",
       [](Response& r, const std::string&) {
         r.status = 416;
         r.set_header("Content-Range", "bytes */50");
       },
       "416"},
      {"compressed",
       [](Response& r, const std::string& d) {
         r.set_header("Content-Encoding", "gzip");
         partial(r, "bytes 0-99/1048576", d.substr(0, 100));
       },
       "compressed"},
  };
  for (const auto& c : cases) {
    const int before = blobs.value();
    on_blob = [&](int, const Request&, Response& res) {
      c.answer(res, data);
      return true;
    };
    Error error = failed_read({0, 100});
    EXPECT_EQ(error.code, Code::kOrigin) << c.name;
    EXPECT_NE(error.what.find(c.says), std::string::npos) << c.name << ": " << error.what;
    EXPECT_EQ(blobs.value(), before + 1) << c.name;
  }
}

TEST_F(OriginRead, AChunkedBodyLongerThanAskedIsRefused) {
  on_blob = [](int, const Request&, Response& res) {
    res.status = 206;
    res.set_header("Content-Range", "bytes 0-99/1048576");
    res.set_chunked_content_provider("application/octet-stream",
                                     [](size_t, httplib::DataSink& sink) {
                                       sink.write(std::string(150, 'x').data(), 150);
                                       sink.done();
                                       return true;
                                     });
    return true;
  };
  Error error = failed_read({0, 100});
  EXPECT_EQ(error.code, Code::kOrigin);
  EXPECT_NE(error.what.find("longer"), std::string::npos) << error.what;
}

TEST_F(OriginRead, AServerThatDoesNotDoRangesIsReadUpToTheWantedPart) {
  on_blob = [this](int, const Request&, Response& res) {
    res.status = 200;
    res.set_content(data, "application/octet-stream");
    return true;
  };
  expect_bytes({300000, 1000});
  expect_bytes({0, 1 << 20});
  EXPECT_EQ(blobs.value(), 2);
}

TEST_F(OriginRead, AnotherEtagOrSizeOrCommitAtTheHubIsRefused) {
  const std::map<std::string, std::string> wrong = {
      {"X-Linked-Etag", "\"" + std::string(64, 'f') + "\""},
      {"X-Linked-Size", "999"},
      {"X-Repo-Commit", std::string(40, 'f')}};
  for (const auto& [name, value] : wrong) {
    on_hub = [&, name = name, value = value](const Request& req, Response& res) {
      if (req.path.find("/resolve/") == std::string::npos) return false;
      for (const auto& [key, right] : std::map<std::string, std::string>{
               {"X-Linked-Etag", kSha}, {"X-Linked-Size", "1048576"}, {"X-Repo-Commit", kCommit}}) {
        res.set_header(key, key == name ? value : right);
      }
      res.set_redirect(cdn.url("/blob"));
      return true;
    };
    Error error = failed_read();
    EXPECT_EQ(error.code, Code::kOrigin) << name;
  }
  EXPECT_EQ(blobs.value(), 0);
}

TEST_F(OriginRead, ASizeThatDisagreesNamesBoth) {
  on_hub = [](const Request& req, Response& res) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    res.set_header("X-Linked-Size", "999");
    res.set_redirect("http://127.0.0.1:1/");
    return true;
  };
  Error error = failed_read();
  EXPECT_NE(error.what.find("999"), std::string::npos) << error.what;
  EXPECT_NE(error.what.find("1048576"), std::string::npos) << error.what;
}

TEST_F(OriginRead, ASmallFilesEtagIsCheckedToo) {
  on_hub = [](const Request& req, Response& res) {
    if (req.path.find("config.json") == std::string::npos) return false;
    res.set_header("ETag", "W/\"" + std::string(40, '9') + "\"");
    res.set_content("{\"a\": 1}", "text/plain");
    return true;
  };
  auto from = origin();
  ReadOutcome outcome = read(*from, loaded(*from), "config.json", {0, 8});
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kOrigin);
}

TEST_F(OriginRead, AnEtagOfAnotherMakeIsNoMismatch) {
  on_hub = [](const Request& req, Response& res) {
    if (req.path.find("config.json") == std::string::npos) return false;
    res.set_header("ETag", "\"5f3-61a\"");
    res.set_content("{\"a\": 1}", "text/plain");
    return true;
  };
  auto from = origin();
  EXPECT_TRUE(read(*from, loaded(*from), "config.json", {0, 8}).result);
}

TEST_F(OriginRead, ACdnEtagThatChangesBetweenReadsIsRefused) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ASSERT_TRUE(read(*from, snapshot, "model.safetensors", {0, 10}).result);
  on_blob = [this](int, const Request&, Response& res) {
    res.set_header("ETag", "\"cdn-2\"");
    partial(res, "bytes 0-9/1048576", data.substr(0, 10));
    return true;
  };
  ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {0, 10});
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kOrigin);
}

TEST_F(OriginRead, ASinksErrorEndsTheReadWithIt) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ReadRequest request;
  request.file = file(snapshot, "model.safetensors");
  request.range = {0, 1 << 20};
  request.sink = [](uint64_t, std::span<const std::byte>) -> Result<void> {
    return fail(Code::kNoSpace, "the disk is full");
  };
  test::Later<Result<void>> done;
  request.on_done = [&](Result<void> r) { done.set(std::move(r)); };
  auto transfer = from->read(snapshot, std::move(request));
  auto result = done.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().what, "the disk is full");
}

}  // namespace
}  // namespace nexus
