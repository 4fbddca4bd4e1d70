#include <gtest/gtest.h>

#include <cstdint>

#include "tests/unit/origin_test_support.h"

namespace nexus {
namespace {

using test::Gate;
using test::HubTest;
using test::kCommit;
using test::kSha;
using test::load;
using test::Reading;
using test::ReadOutcome;

TEST_F(HubTest, LoadsAModelInOneRequest) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  EXPECT_EQ(snapshot.repo, "org/m");
  EXPECT_EQ(snapshot.commit, kCommit);
  EXPECT_EQ(snapshot.mtime_s, 1706704496);
  EXPECT_FALSE(snapshot.restricted);
  ASSERT_EQ(snapshot.files.size(), 2u);
  EXPECT_EQ(snapshot.files[0].path, "config.json");
  EXPECT_EQ(snapshot.files[0].etag, std::string(40, '1'));
  EXPECT_EQ(snapshot.files[1].sha256, kSha);
  EXPECT_EQ(snapshot.files[1].size, 1048576u);
  EXPECT_EQ(seen, std::vector<std::string>{"GET /api/models/org/m/revision/main?blobs=true"});
}

TEST_F(HubTest, ReadsARangeThroughTheRedirectAndKeepsTheLocation) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  for (uint64_t offset : {0u, 1000u, 524288u}) {
    ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {offset, 4096});
    ASSERT_TRUE(outcome.result) << outcome.result.error().what;
    EXPECT_EQ(outcome.bytes, data.substr(offset, 4096));
  }
  EXPECT_EQ(resolves.value(), 1);
  EXPECT_EQ(cdn_queries.at(1), "/blob?sig=1 bytes=1000-5095");
}

TEST_F(HubTest, ASmallFileIsAnsweredByTheHubInOneRequest) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ReadOutcome outcome = read(*from, snapshot, "config.json", {0, 8});
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_EQ(outcome.bytes, "{\"a\": 1}");
  EXPECT_EQ(seen.size(), 2u);
}

TEST_F(HubTest, TheTokenGoesToTheHubAndNeverToTheCdn) {
  options.token = "hf_secret";
  expect_bytes();
  EXPECT_EQ(hub_tokens, std::set<std::string>{"Bearer hf_secret"});
  EXPECT_EQ(cdn_tokens, std::set<std::string>{""});
}

TEST_F(HubTest, TheTokenDoesNotFollowARedirectToAnotherPortOrHost) {
  options.token = "hf_secret";
  on_hub = [this](const Request& req, Response& res) {
    if (req.path.find("/api/") == std::string::npos) return false;
    res.set_redirect(cdn.url("/other"));
    return true;
  };
  cdn.http.Get("/other", [this](const Request& req, Response& res) {
    std::lock_guard lock(mutex);
    cdn_tokens.insert(req.get_header_value("Authorization"));
    res.set_content(info, "application/json");
  });
  auto from = origin();
  loaded(*from);
  EXPECT_EQ(cdn_tokens, std::set<std::string>{""});
}

TEST_F(HubTest, ARenamedRepoIsFollowedAndTakesItsNewName) {
  options.token = "hf_secret";
  on_hub = [](const Request& req, Response& res) {
    if (req.path.rfind("/api/models/old/name/", 0) == 0) {
      res.set_header("Location", "/api/models/org/m/revision/main?blobs=true");
      res.status = 307;
      return true;
    }
    return false;
  };
  auto from = origin();
  auto snapshot = load(*from, "old/name", "main");
  ASSERT_TRUE(snapshot) << snapshot.error().what;
  EXPECT_EQ(snapshot->repo, "org/m");
  EXPECT_EQ(hub_tokens, std::set<std::string>{"Bearer hf_secret"});
}

TEST_F(HubTest, ARelativeRedirectOfResolveIsFollowedToTheCdn) {
  on_hub = [](const Request& req, Response& res) {
    if (req.path.rfind("/org/old/resolve/", 0) != 0) return false;
    res.set_header("Location", "/org/m" + req.path.substr(8));
    res.status = 307;
    return true;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  snapshot.repo = "org/old";
  ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {5, 100});
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_EQ(outcome.bytes, data.substr(5, 100));
}

TEST_F(HubTest, ARedirectLoopIsAnErrorAndEnds) {
  on_hub = [](const Request& req, Response& res) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    res.set_header("Location", req.path);
    res.status = 302;
    return true;
  };
  Error error = failed_read();
  EXPECT_EQ(error.code, Code::kOrigin);
  EXPECT_NE(error.what.find("redirects"), std::string::npos) << error.what;
}

TEST_F(HubTest, ALoopBetweenCdnAddressesEnds) {
  on_blob = [this](int, const Request&, Response& res) {
    res.set_redirect(cdn.url("/blob"));
    return true;
  };
  EXPECT_EQ(failed_read().code, Code::kOrigin);
  EXPECT_EQ(blobs.value(), 6);
}

TEST_F(HubTest, RedirectsToOtherSchemesAreRefused) {
  for (const char* target : {"file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:x"}) {
    on_hub = [target](const Request& req, Response& res) {
      if (req.path.find("/resolve/") == std::string::npos) return false;
      res.set_header("Location", target);
      res.status = 302;
      return true;
    };
    Error error = failed_read();
    EXPECT_EQ(error.code, Code::kOrigin) << target;
  }
}

TEST_F(HubTest, AFileOnAHubThatServesItItselfIsRead) {
  on_hub = [this](const Request& req, Response& res) {
    if (req.path.find("model.safetensors") == std::string::npos) return false;
    res.set_header("ETag", "\"" + kSha + "\"");
    res.set_content(data, "application/octet-stream");
    return true;
  };
  expect_bytes({77, 1000});
  EXPECT_EQ(blobs.value(), 0);
}

// --- errors of the hub

struct HubErrorCase {
  int status;
  const char* code;
  const char* message;
  Code expected;
};

TEST_F(HubTest, RefusalsAreNotFoundOrAccess) {
  const std::vector<HubErrorCase> cases = {
      {403, "GatedRepo", "", Code::kAccess},
      {401, "GatedRepo", "", Code::kAccess},
      {404, "RepoNotFound", "", Code::kNotFound},
      {401, "RepoNotFound", "", Code::kNotFound},
      {404, "RevisionNotFound", "", Code::kNotFound},
      {401, "", "", Code::kNotFound},
      {401, "", "Invalid username or password.", Code::kNotFound},
      {401, "", "Invalid credentials in Authorization header", Code::kAccess},
      {403, "", "", Code::kAccess},
      {404, "", "", Code::kNotFound},
      {418, "", "", Code::kOrigin},
  };
  for (const auto& c : cases) {
    on_hub = [&c](const Request&, Response& res) {
      res.status = c.status;
      if (*c.code) res.set_header("X-Error-Code", c.code);
      if (*c.message) res.set_header("X-Error-Message", c.message);
      return true;
    };
    auto from = origin();
    auto snapshot = load(*from, "org/m", "main");
    ASSERT_FALSE(snapshot);
    EXPECT_EQ(snapshot.error().code, c.expected)
        << c.status << " " << c.code << " " << c.message << ": " << snapshot.error().what;
    EXPECT_NE(snapshot.error().what.find("org/m"), std::string::npos);
  }
}

TEST_F(HubTest, AGatedModelSaysWhereToAsk) {
  on_hub = [](const Request&, Response& res) {
    res.status = 403;
    res.set_header("X-Error-Code", "GatedRepo");
    return true;
  };
  auto from = origin();
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_NE(snapshot.error().what.find(hub.url("/org/m")), std::string::npos)
      << snapshot.error().what;
  EXPECT_NE(snapshot.error().what.find("HF_TOKEN"), std::string::npos);
}

TEST_F(HubTest, AMissingFileIsNotFoundAndNotAskedForTwice) {
  on_hub = [this](const Request& req, Response& res) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    resolves.add();
    res.status = 404;
    res.set_header("X-Error-Code", "EntryNotFound");
    return true;
  };
  EXPECT_EQ(failed_read().code, Code::kNotFound);
  EXPECT_EQ(resolves.value(), 1);
}

TEST_F(HubTest, ErrorsNameFileRangeHostAndReasonAndNoSecret) {
  options.token = "hf_secret";
  on_blob = [](int, const Request&, Response& res) {
    res.status = 400;
    return true;
  };
  Error error = failed_read({0, 4096});
  EXPECT_EQ(error.what, "fetch org/m/model.safetensors [0, 4096): 127.0.0.1:" +
                            std::to_string(cdn.port()) + ": HTTP 400");
}

TEST_F(HubTest, NamesThatAreNotReposAreNotAskedFor) {
  auto from = origin();
  for (const char* name : {"../etc", "a/b/c", "", "a b", "-x", "org/..", "a--b"}) {
    auto snapshot = load(*from, name, "main");
    ASSERT_FALSE(snapshot);
    EXPECT_EQ(snapshot.error().code, Code::kNotFound) << name;
  }
  EXPECT_TRUE(seen.empty());
}

TEST_F(HubTest, ARevisionWithASlashIsQuoted) {
  auto from = origin();
  auto snapshot = load(*from, "org/m", "refs/pr/1");
  EXPECT_EQ(seen.at(0), "GET /api/models/org/m/revision/refs%2Fpr%2F1?blobs=true");
}

// --- listings

TEST_F(HubTest, AListingWithoutSizesIsCompletedFromThePagedTree) {
  info = R"({"id": "org/m", "sha": ")" + kCommit +
         R"(", "siblings": [{"rfilename": "a"}, {"rfilename": "b/c"}]})";
  hub.http.Get("/api/models/org/m/tree/" + kCommit, [](const Request& req, Response& res) {
    EXPECT_EQ(req.get_param_value("recursive"), "true");
    if (req.get_param_value("cursor").empty()) {
      res.set_header("Link", "<" + req.path + "?recursive=true&cursor=2>; rel=\"next\"");
      res.set_content(
          R"([{"type": "directory", "path": "b"}, {"type": "file", "path": "a", "size": 5, "oid": ")" +
              std::string(40, '2') + R"("}])",
          "application/json");
    } else {
      res.set_content(
          R"([{"type": "file", "path": "b/c", "size": 9, "oid": "x", "lfs": {"oid": ")" + kSha +
              R"(", "size": 9, "pointerSize": 130}}])",
          "application/json");
    }
  });
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ASSERT_EQ(snapshot.files.size(), 2u);
  EXPECT_EQ(snapshot.files[0].size, 5u);
  EXPECT_EQ(snapshot.files[0].etag, std::string(40, '2'));
  EXPECT_EQ(snapshot.files[1].path, "b/c");
  EXPECT_EQ(snapshot.files[1].sha256, kSha);
}

TEST_F(HubTest, ATreeThatPagesToAnotherHostIsRefused) {
  info = R"({"id": "org/m", "sha": ")" + kCommit + R"("})";
  hub.http.Get("/api/models/org/m/tree/" + kCommit, [this](const Request&, Response& res) {
    res.set_header("Link", "<" + cdn.url("/x") + ">; rel=\"next\"");
    res.set_content("[]", "application/json");
  });
  auto from = origin();
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kOrigin);
}

TEST_F(HubTest, ATreeThatPagesToItselfEnds) {
  info = R"({"id": "org/m", "sha": ")" + kCommit + R"("})";
  hub.http.Get("/api/models/org/m/tree/" + kCommit, [](const Request& req, Response& res) {
    res.set_header("Link", "<" + req.target + ">; rel=\"next\"");
    res.set_content("[]", "application/json");
  });
  auto from = origin();
  EXPECT_FALSE(load(*from, "org/m", "main"));
}

TEST_F(HubTest, NonsenseInsteadOfAListingIsAnOriginError) {
  for (const char* text :
       {"", "[]", "{", "null", "<html>", "{\"sha\": 5}", "{\"sha\": \"../..\"}"}) {
    info = text;
    auto from = origin();
    auto snapshot = load(*from, "org/m", "main");
    ASSERT_FALSE(snapshot) << text;
    EXPECT_EQ(snapshot.error().code, Code::kOrigin) << text;
  }
}

TEST_F(HubTest, EvilNamesAreDroppedAndEvilSizesKeptWithTheirError) {
  info = R"({"id": "org/m", "sha": ")" + kCommit + R"(", "siblings": [
    {"rfilename": "../evil", "size": 1}, {"rfilename": "/abs", "size": 1},
    {"rfilename": "a", "size": 1}, {"rfilename": "a/b", "size": 1}, {"rfilename": "ok", "size": 1},
    {"rfilename": "ok", "size": 2}, {"rfilename": "x\u0000y", "size": 1}, {"rfilename": "neg", "size": -4},
    {"rfilename": "new\nline", "size": 1}, {"rfilename": "half", "size": 1.5},
    {"rfilename": "two", "size": 5, "lfs": {"sha256": "x", "size": 6}}]})";
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  std::map<std::string, bool> readable;
  for (const auto& kept : snapshot.files) readable[kept.path] = kept.error.empty();
  EXPECT_EQ(readable,
            (std::map<std::string, bool>{
                {"a", true}, {"ok", true}, {"neg", false}, {"half", false}, {"two", false}}));
  EXPECT_EQ(snapshot.complaints.size(), 9u);
  for (const auto& complaint : snapshot.complaints) {
    EXPECT_EQ(complaint.find('\n'), std::string::npos);
  }
}

TEST_F(HubTest, AFileThatTheListingIsWrongAboutIsNotFetched) {
  info = R"({"id": "org/m", "sha": ")" + kCommit +
         R"(", "siblings": [{"rfilename": "model.safetensors", "size": -4}]})";
  Error error = failed_read({0, 1});
  EXPECT_EQ(error.code, Code::kCorrupt);
  EXPECT_NE(error.what.find("model.safetensors"), std::string::npos) << error.what;
  EXPECT_EQ(resolves.value(), 0);
}

TEST_F(HubTest, GatedAndPrivateModelsAreRestricted) {
  for (const char* extra :
       {R"("gated": "auto")", R"("gated": "manual")", R"("private": true)", R"("gated": true)"}) {
    info = R"({"id": "org/m", "sha": ")" + kCommit + R"(", "siblings": [], )" + extra + "}";
    auto from = origin();
    EXPECT_TRUE(loaded(*from).restricted) << extra;
  }
}

}  // namespace
}  // namespace nexus
