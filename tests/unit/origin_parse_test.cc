// The pure parts: names, listings, headers, waits.
#include <gtest/gtest.h>

#include "backend/origin/answer_check.h"
#include "backend/origin/hub.h"
#include "backend/origin/retry.h"

namespace nexus {
namespace {

using std::chrono::milliseconds;

HttpResponse response(int status, std::map<std::string, std::string> headers = {}) {
  return HttpResponse{status, std::move(headers)};
}

TEST(ModelPath, OrdinaryNamesAreValid) {
  for (const char* path : {"config.json", "a/b/c.safetensors", ".gitattributes", "a b", "..a",
                           "a..", "\xC3\xA9.txt", "\xE4\xB8\xAD/\xF0\x9F\x98\x80"}) {
    EXPECT_TRUE(valid_model_path(path)) << path;
  }
  EXPECT_TRUE(valid_model_path(std::string(255, 'x')));
}

TEST(ModelPath, NamesThatCouldLeaveTheModelOrHurtATerminalAreNot) {
  for (const char* path :
       {"",         "/",        "/etc/passwd",  "a/",           "a//b",
        ".",        "..",       "../a",         "a/../b",       "a/.",
        "a\nb",     "a\x1b[2J", "\x7f",         "\xC2\x85",     "\xFF",
        "\xC3",     "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
        "a\xE4\xB8"}) {
    EXPECT_FALSE(valid_model_path(path)) << path;
  }
  EXPECT_FALSE(valid_model_path(std::string("a\0b", 3)));
  EXPECT_FALSE(valid_model_path(std::string(256, 'x')));
  std::string deep;
  for (int i = 0; i < 2100; ++i) deep += "a/";
  EXPECT_FALSE(valid_model_path(deep + "a"));
}

TEST(RepoName, FollowsTheHubsRules) {
  for (const char* name :
       {"gpt2", "org/name", "sentence-transformers/all-MiniLM-L6-v2", "a.b/c_d"}) {
    EXPECT_TRUE(valid_repo_name(name)) << name;
  }
  for (const char* name : {"", "/", "a/", "/a", "a/b/c", "-a", "a-", ".a", "a.", "a--b", "a..b",
                           "a b", "..", "a/..", "a\n", "a~b", "a@b"}) {
    EXPECT_FALSE(valid_repo_name(name)) << name;
  }
  EXPECT_FALSE(valid_repo_name(std::string(200, 'a')));
}

std::string info(const std::string& siblings) {
  return R"({"sha": "abc123", "siblings": )" + siblings + "}";
}

TEST(HubJson, TakesFilesWithSizesAndDigests) {
  auto model = parse_model(info(R"([{"rfilename": "w", "size": 10, "blobId": "x",
      "lfs": {"size": 10, "sha256": ")" +
                                std::string(64, 'a') + R"(", "pointerSize": 3}}])"),
                           "org/m", "main");
  ASSERT_TRUE(model) << model.error().what;
  EXPECT_TRUE(model->complete);
  ASSERT_EQ(model->snapshot.files.size(), 1u);
  EXPECT_EQ(model->snapshot.files[0].size, 10u);
  EXPECT_EQ(model->snapshot.files[0].sha256, std::string(64, 'a'));
}

TEST(HubJson, AModelWithoutAListOrWithoutSizesIsNotComplete) {
  EXPECT_FALSE(parse_model(R"({"sha": "abc"})", "m", "")->complete);
  EXPECT_FALSE(parse_model(info(R"([{"rfilename": "a"}])"), "m", "")->complete);
  EXPECT_FALSE(parse_model(info(R"("none")"), "m", "")->complete);
  EXPECT_TRUE(parse_model(info("[]"), "m", "")->complete);
}

TEST(HubJson, WrongTypesAnywhereAreSurvived) {
  for (const char* siblings :
       {R"([1, "a", null, [], {}])", R"({"a": {"size": 1}})", R"([{"rfilename": 5, "size": "x"}])",
        R"([{"rfilename": {"size": 1}, "size": [1], "lfs": [1], "blobId": null}])",
        R"([{"lfs": {"lfs": {"size": 3}, "sha256": 5}}])", "null", "5",
        R"([[{"rfilename": "x"}]])"}) {
    EXPECT_TRUE(parse_model(info(siblings), "m", "")) << siblings;
  }
}

TEST(HubJson, AFileWhoseSizeIsNoneIsKeptWithItsError) {
  for (const char* size :
       {"-1", "1e3", "18446744073709551615", "99999999999999999999999", "1.5", "8796093022209"}) {
    auto model =
        parse_model(info(R"([{"rfilename": "a", "size": )" + std::string(size) + "}]"), "m", "");
    ASSERT_TRUE(model) << size;
    ASSERT_EQ(model->snapshot.files.size(), 1u) << size;
    EXPECT_NE(model->snapshot.files[0].error, "") << size;
    EXPECT_EQ(model->snapshot.files[0].size, 0u) << size;
    EXPECT_EQ(model->snapshot.complaints.size(), 1u) << size;
  }
}

TEST(HubJson, ValuesOfNestedObjectsAreNotTheEntrys) {
  auto model = parse_model(
      info(
          R"([{"rfilename": "a", "size": 1, "securityStatus": {"size": 9, "rfilename": "evil"}, "x": [{"size": 7}]}])"),
      "m", "");
  ASSERT_EQ(model->snapshot.files.size(), 1u);
  EXPECT_EQ(model->snapshot.files[0].path, "a");
  EXPECT_EQ(model->snapshot.files[0].size, 1u);
}

TEST(HubJson, DeepNestingIsRefusedWhateverItsDepth) {
  for (size_t depth : {100u, 1000000u}) {
    auto model = parse_model(R"({"sha": "abc", "x": )" + std::string(depth, '['), "m", "");
    ASSERT_FALSE(model);
    EXPECT_EQ(model.error().code, Code::kOrigin);
  }
}

TEST(HubJson, ACommitMustBeUsableInAPath) {
  for (const char* sha : {"", "../x", "a/b", "a b", "a.b"}) {
    EXPECT_FALSE(parse_model(R"({"sha": ")" + std::string(sha) + R"(", "siblings": []})", "m", ""))
        << sha;
  }
}

TEST(HubJson, ANameThatIsNoReposIsNotTaken) {
  auto model = parse_model(R"({"sha": "abc", "id": "../../etc", "siblings": []})", "org/m", "");
  EXPECT_EQ(model->snapshot.repo, "org/m");
}

TEST(HubJson, TreeDirectoriesAreNoFiles) {
  Snapshot snapshot;
  ASSERT_TRUE(parse_tree_page(
      R"([{"type": "directory", "path": "d", "size": 0}, {"type": "file", "path": "d/f", "size": 3}])",
      snapshot));
  ASSERT_EQ(snapshot.files.size(), 1u);
  EXPECT_EQ(snapshot.files[0].path, "d/f");
  EXPECT_FALSE(parse_tree_page("{}", snapshot));
  EXPECT_FALSE(parse_tree_page("[", snapshot));
}

TEST(HubJson, NextPageIsTheTargetOfRelNext) {
  EXPECT_EQ(next_page(R"(<https://h/x?cursor=a,b>; rel="next")"), "https://h/x?cursor=a,b");
  EXPECT_EQ(next_page(R"(<https://h/1>; rel="prev", </2>; title="a, b"; rel=next)"), "/2");
  for (const char* none :
       {"", "<", "<x", "<x>", "<x>; rel=\"prev\"", "rel=next", "<x>; rel=\"next"}) {
    if (std::string(none) == "<x>; rel=\"next") continue;  // an open quote: either answer will do
    EXPECT_EQ(next_page(none), "") << none;
  }
}

TEST(Sanitize, DuplicatesAndWhatLiesBelowAFileGo) {
  Snapshot snapshot;
  for (const char* path : {"b", "a/b/c", "a", "a/b", "b", "../x"}) {
    snapshot.files.emplace_back().path = path;
  }
  sanitize_files(snapshot);
  ASSERT_EQ(snapshot.files.size(), 2u);
  EXPECT_EQ(snapshot.files[0].path, "a");
  EXPECT_EQ(snapshot.files[1].path, "b");
  EXPECT_EQ(snapshot.complaints.size(), 4u);
}

TEST(ContentRange, OnlyACompleteOneIsRead) {
  auto range = parse_content_range("bytes 5-9/100");
  ASSERT_TRUE(range);
  EXPECT_EQ(range->first, 5u);
  EXPECT_EQ(range->last, 9u);
  EXPECT_EQ(range->total, 100u);
  for (const char* bad :
       {"", "bytes", "bytes ", "bytes 5-9", "bytes 5-9/", "bytes 5-9/*", "bytes */100",
        "bytes -5-9/10", "bytes 5-9/10x", "lines 5-9/10", "bytes 99999999999999999999-5/10"}) {
    EXPECT_FALSE(parse_content_range(bad)) << bad;
  }
}

TEST(RangeAnswer, TheLargestRangeDoesNotOverflow) {
  EXPECT_FALSE(check_range_answer(
      response(206, {{"content-range", "bytes 0-18446744073709551615/18446744073709551615"}}),
      {0, 10}, UINT64_MAX, false));
}

TEST(RangeAnswer, AFarPartOfAWholeFileIsNotWaitedFor) {
  const std::string size = std::to_string(1ull << 40);
  EXPECT_FALSE(check_range_answer(response(200, {{"content-length", size}}), {1ull << 39, 10},
                                  1ull << 40, false));
  EXPECT_EQ(
      *check_range_answer(response(200, {{"content-length", size}}), {1000, 10}, 1ull << 40, false),
      1000u);
}

TEST(Etag, WeaknessAndQuotesAreStripped) {
  EXPECT_EQ(normal_etag("W/\"abc\""), "abc");
  EXPECT_EQ(normal_etag("\"abc\""), "abc");
  EXPECT_EQ(normal_etag("abc"), "abc");
  EXPECT_EQ(normal_etag("\""), "\"");
  EXPECT_EQ(normal_etag(""), "");
}

TEST(Retry, WaitsDoubleUpToEightTimesTheBase) {
  RetryPolicy policy;
  const double middle = 0.5;
  EXPECT_EQ(retry_wait(policy, 1, middle, {}), milliseconds(1000));
  EXPECT_EQ(retry_wait(policy, 2, middle, {}), milliseconds(2000));
  EXPECT_EQ(retry_wait(policy, 4, middle, {}), milliseconds(8000));
  EXPECT_EQ(retry_wait(policy, 40, middle, {}), milliseconds(8000));
  EXPECT_EQ(retry_wait(policy, 1, 0, {}), milliseconds(750));
  EXPECT_LT(retry_wait(policy, 1, 0.999, {}), milliseconds(1250));
}

TEST(Retry, WhatTheServerAsksForIsKeptUpToAMinute) {
  RetryPolicy policy;
  EXPECT_EQ(retry_wait(policy, 1, 0.5, milliseconds(30000)), milliseconds(30000));
  EXPECT_EQ(retry_wait(policy, 1, 0.5, milliseconds(900000)), milliseconds(60000));
  EXPECT_EQ(retry_wait(policy, 3, 0.5, milliseconds(1)), milliseconds(4000));
}

TEST(Retry, RetryAfterIsSecondsOrADate) {
  const auto now =
      std::chrono::system_clock::from_time_t(784111777);  // Sun, 06 Nov 1994 08:49:37 GMT
  EXPECT_EQ(server_wait(response(503, {{"retry-after", "7"}}), now), milliseconds(7000));
  EXPECT_EQ(server_wait(response(503, {{"retry-after", "Sun, 06 Nov 1994 08:50:00 GMT"}}), now),
            milliseconds(23000));
  EXPECT_EQ(server_wait(response(503, {{"retry-after", "Sun, 06 Nov 1993 08:50:00 GMT"}}), now),
            milliseconds(0));
  EXPECT_EQ(server_wait(response(503, {{"retry-after", "99999999999999999999999"}}), now),
            milliseconds(1000000000));
  EXPECT_FALSE(server_wait(response(503, {{"retry-after", "soon"}}), now));
  EXPECT_FALSE(server_wait(response(503), now));
}

TEST(Retry, RateLimitOfA429SaysWhenTheWindowEnds) {
  const auto now = std::chrono::system_clock::now();
  EXPECT_EQ(server_wait(response(429, {{"ratelimit", "\"resolvers\";r=0;t=55"}}), now),
            milliseconds(56000));
  EXPECT_FALSE(server_wait(response(200, {{"ratelimit", "\"resolvers\";r=0;t=55"}}), now));
  EXPECT_FALSE(server_wait(response(429, {{"ratelimit", "\"resolvers\";r=0;t=x"}}), now));
}

TEST(Retry, ATaskThatIsThrownAwaySaysSoAndOneThatRanDoesNot) {
  int ran = 0, dropped = 0;
  {
    ManualExecutor timers;
    const auto task = [&] { return run_or_drop([&] { ++ran; }, [&] { ++dropped; }); };
    timers.post_after(milliseconds(1), task());
    timers.post_after(milliseconds(9), task());
    timers.advance(milliseconds(5));
    EXPECT_EQ(ran, 1);
    EXPECT_EQ(dropped, 0);
  }
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(dropped, 1);
}

}  // namespace
}  // namespace nexus
