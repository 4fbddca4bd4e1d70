// Local directories, hub caches, and pre-split layers behind HTTP.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "backend/origin/base_url.h"
#include "backend/origin/file_reader.h"
#include "backend/origin/hub_cache.h"
#include "backend/origin/local_dir.h"
#include "tests/unit/origin_test_support.h"

namespace nexus {
namespace {

namespace fs = std::filesystem;
using test::HubTest;
using test::kCommit;
using test::kSha;
using test::load;
using test::Reading;
using test::ReadOutcome;
using test::TestServer;

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/nexus-origin-XXXXXX";
    path = mkdtemp(name);
    chmod(name, 0755);
  }
  ~TempDir() { fs::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
  fs::path path;
};

std::vector<std::string> names(const Snapshot& snapshot) {
  std::vector<std::string> list;
  for (const auto& file : snapshot.files) list.push_back(file.path);
  return list;
}

TEST(LocalDir, ListsNestedFilesAndServesThemWhereTheyLie) {
  TempDir dir;
  dir.write("config.json", "{}");
  dir.write("sub/w.safetensors", "0123456789");
  dir.write(".git/HEAD", "x");
  fs::create_symlink(dir.path / "config.json", dir.path / "link.json");
  ThreadPool pool("disk", 2);
  auto origin = make_local_origin(dir.path.string() + "/", pool);
  auto snapshot = load(*origin, "alias", "");
  ASSERT_TRUE(snapshot) << snapshot.error().what;
  EXPECT_EQ(names(*snapshot),
            (std::vector<std::string>{"config.json", "link.json", "sub/w.safetensors"}));
  EXPECT_EQ(snapshot->repo, "alias");
  EXPECT_EQ(snapshot->commit.size(), 40u);
  EXPECT_FALSE(snapshot->restricted);
  const OriginFile& file = snapshot->files[2];
  EXPECT_EQ(file.local_path, (dir.path / "sub/w.safetensors").string());
  ReadOutcome outcome = Reading(*origin, *snapshot, file, {3, 4}).wait();
  EXPECT_TRUE(outcome.result);
  EXPECT_EQ(outcome.bytes, "3456");
}

TEST(LocalDir, TheCommitChangesWithAFile) {
  TempDir dir;
  dir.write("a", "1");
  ThreadPool pool("disk", 1);
  auto origin = make_local_origin(dir.path.string(), pool);
  auto first = load(*origin, "m", "");
  EXPECT_EQ(load(*origin, "m", "")->commit, first->commit);
  dir.write("a", "12");
  EXPECT_NE(load(*origin, "m", "")->commit, first->commit);
  // And who still has the old listing does not get a mix.
  ReadOutcome outcome = Reading(*origin, *first, first->files[0], {0, 1}).wait();
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kStale);
}

TEST(LocalDir, ALongReadTakesTurnsAndIsWhole) {
  TempDir dir;
  const std::string data = test::pattern_bytes(18 << 20);
  dir.write("w", data);
  ThreadPool pool("disk", 1);
  auto origin = make_local_origin(dir.path.string(), pool);
  auto snapshot = load(*origin, "m", "");
  Reading whole(*origin, *snapshot, snapshot->files[0], {0, 18 << 20});
  Reading part(*origin, *snapshot, snapshot->files[0], {100, 10});
  EXPECT_EQ(part.wait().bytes, data.substr(100, 10));
  EXPECT_TRUE(whole.wait().bytes == data);
}

TEST(LocalDir, SymlinkLoopsAndSpecialFilesAreSkippedWithAComplaint) {
  TempDir dir;
  dir.write("sub/a", "1");
  fs::create_directory_symlink(dir.path, dir.path / "sub/up");
  fs::create_symlink("/nowhere", dir.path / "broken");
  mkfifo((dir.path / "pipe").c_str(), 0644);
  ThreadPool pool("disk", 1);
  auto origin = make_local_origin(dir.path.string(), pool);
  auto snapshot = load(*origin, "m", "");
  ASSERT_TRUE(snapshot);
  EXPECT_EQ(names(*snapshot), std::vector<std::string>{"sub/a"});
  EXPECT_EQ(snapshot->complaints.size(), 3u);
}

TEST(LocalDir, APrivateDirectoryIsRestricted) {
  TempDir dir;
  dir.write("a", "1");
  chmod(dir.path.c_str(), 0700);
  ThreadPool pool("disk", 1);
  EXPECT_TRUE(load(*make_local_origin(dir.path.string(), pool), "m", "")->restricted);
}

TEST(LocalDir, AMissingDirectoryIsNotFound) {
  ThreadPool pool("disk", 1);
  auto snapshot = load(*make_local_origin("/nonexistent/x", pool), "m", "");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kNotFound);
}

TEST(LocalDir, ACancelledReadIsAnsweredOnce) {
  TempDir dir;
  dir.write("w", std::string(1 << 20, 'x'));
  ThreadPool pool("disk", 1);
  auto origin = make_local_origin(dir.path.string(), pool);
  auto snapshot = load(*origin, "m", "");
  test::Gate gate;
  pool.post([&] { gate.wait(); });
  Reading reading(*origin, *snapshot, snapshot->files[0], {0, 1 << 20});
  reading.transfer->cancel();
  gate.open();
  EXPECT_EQ(reading.wait().result.error().code, Code::kCancelled);
  reading.transfer->cancel();
}

// --- a huggingface_hub cache

using HubCache = HubTest;

void fill_cache(const TempDir& dir, const std::string& data) {
  const std::string model = "models--org--m/";
  dir.write(model + "refs/main", kCommit);
  dir.write(model + "blobs/" + kSha, data);
  const fs::path snapshot = dir.path / (model + "snapshots/" + kCommit);
  fs::create_directories(snapshot / "sub");
  fs::create_symlink("../../blobs/" + kSha, snapshot / "model.safetensors");
  fs::create_symlink("../../../blobs/" + kSha, snapshot / "sub/copy");
}

TEST_F(HubCache, FilesOfTheRightSizeAreServedFromIt) {
  TempDir dir;
  fill_cache(dir, data);
  ThreadPool disk("disk", 1);
  options.hub_cache = dir.path.string();
  options.disk = &disk;
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  EXPECT_NE(file(snapshot, "model.safetensors").local_path, "");
  EXPECT_EQ(file(snapshot, "config.json").local_path, "");
  EXPECT_EQ(read(*from, snapshot, "model.safetensors", {7, 100}).bytes, data.substr(7, 100));
  EXPECT_EQ(resolves.value(), 0);
}

TEST_F(HubCache, AnIncompleteFileIsNotTaken) {
  TempDir dir;
  fill_cache(dir, data.substr(1));
  options.hub_cache = dir.path.string();
  auto from = origin();
  EXPECT_EQ(file(loaded(*from), "model.safetensors").local_path, "");
}

TEST_F(HubCache, OfflineTheSnapshotIsWhatTheCacheHolds) {
  TempDir dir;
  fill_cache(dir, data);
  options.hub_cache = dir.path.string();
  options.offline = true;
  auto from = origin();
  for (const std::string& revision : {std::string("main"), std::string(), kCommit}) {
    auto snapshot = load(*from, "org/m", revision);
    ASSERT_TRUE(snapshot) << snapshot.error().what;
    EXPECT_EQ(snapshot->commit, kCommit);
    EXPECT_EQ(names(*snapshot), (std::vector<std::string>{"model.safetensors", "sub/copy"}));
    EXPECT_EQ(snapshot->files[0].sha256, kSha);
    EXPECT_EQ(snapshot->files[0].size, data.size());
  }
  EXPECT_EQ(load(*from, "org/m", "v2").error().code, Code::kOffline);
  EXPECT_EQ(load(*from, "org/m", "../../..").error().code, Code::kOffline);
  EXPECT_EQ(load(*from, "org/other", "main").error().code, Code::kOffline);
}

TEST_F(HubCache, ADeadHubFallsBackToTheCache) {
  TempDir dir;
  fill_cache(dir, data);
  options.hub_cache = dir.path.string();
  options.endpoint = "http://127.0.0.1:" + std::to_string(test::dead_port());
  auto from = origin();
  EXPECT_TRUE(load(*from, "org/m", "main"));
  EXPECT_TRUE(load(*from, "org/m", "main"));
}

// --- base_url

class BaseUrl : public ::testing::Test {
 public:
  void add(const std::string& name, const std::string& body, const std::string& etag = "\"1\"") {
    server.http.Get("/m/" + name,
                    [this, body, etag](const httplib::Request& req, httplib::Response& res) {
                      if (req.method == "HEAD") heads.add();
                      res.set_header("ETag", changed ? "\"2\"" : etag);
                      res.set_content(body, "application/octet-stream");
                    });
  }
  std::shared_ptr<Origin> origin() {
    if (!server.http.is_running()) server.start();
    return make_base_url_origin(server.url("/m/"), false, 3, http, timers,
                                std::chrono::milliseconds(1));
  }
  std::atomic<bool> changed = false;
  test::Counter heads;
  TestServer server;
  LoopExecutor timers{"timers"};
  HttpClient http{{}};
};

TEST_F(BaseUrl, AListingNamesTheLayers) {
  server.http.Get("/m/", [](const httplib::Request&, httplib::Response& res) {
    res.set_content(
        "<a href=\"layer_0.pt\">layer_0.pt</a> <a href='layer_1.pt'> layer_10.pt.sha256 "
        "layer_01.pt xlayer_5.pt <a href=\"config.json\"> layer_2.pt</a>",
        "text/html");
  });
  for (int i = 0; i < 3; ++i) add("layer_" + std::to_string(i) + ".pt", std::string(10 + i, 'x'));
  add("config.json", "{}");
  auto from = origin();
  auto snapshot = load(*from, "alias", "");
  ASSERT_TRUE(snapshot) << snapshot.error().what;
  EXPECT_EQ(names(*snapshot),
            (std::vector<std::string>{"config.json", "layer_0.pt", "layer_1.pt", "layer_2.pt"}));
  EXPECT_TRUE(snapshot->pre_split);
  EXPECT_EQ(snapshot->files[3].size, 12u);
  EXPECT_EQ(snapshot->files[3].etag, "1");
  EXPECT_EQ(snapshot->commit.size(), 40u);
  EXPECT_EQ(Reading(*from, *snapshot, snapshot->files[1], {2, 3}).wait().bytes, "xxx");
}

TEST_F(BaseUrl, WithoutAListingTheLayersAreProbedFor) {
  std::atomic<int> there = 0;
  server.http.Get(R"(/m/layer_(\d+)\.pt)",
                  [&](const httplib::Request& req, httplib::Response& res) {
                    if (std::stoi(req.matches[1]) < there) {
                      res.set_content("abc", "application/octet-stream");
                    } else {
                      res.status = 404;
                    }
                  });
  for (const int count : {1, 2, 3, 5, 13, 32}) {
    there = count;
    auto from = origin();
    auto snapshot = load(*from, "m", "");
    ASSERT_TRUE(snapshot) << snapshot.error().what;
    EXPECT_EQ(snapshot->files.size(), static_cast<size_t>(count));
  }
}

TEST_F(BaseUrl, NonLayerIsTakenInWhenItIsThere) {
  add("layer_0.pt", "abc");
  add("non_layer.pt", "def");
  auto from = origin();
  EXPECT_EQ(names(*load(*from, "m", "")), (std::vector<std::string>{"layer_0.pt", "non_layer.pt"}));
}

TEST_F(BaseUrl, AnEmptyPlaceIsNotFound) {
  auto from = origin();
  auto snapshot = load(*from, "m", "");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kNotFound);
}

TEST_F(BaseUrl, AServerThatAnswersEveryNameWithAPageHasNoLayers) {
  server.http.Get("/m/.*", [](const httplib::Request&, httplib::Response& res) {
    res.set_content("<html>welcome</html>", "text/html");
  });
  auto from = origin();
  EXPECT_EQ(load(*from, "m", "").error().code, Code::kNotFound);
}

TEST_F(BaseUrl, AServerWithoutHeadIsAskedForOneByte) {
  server.http.set_pre_routing_handler([](const httplib::Request& req, httplib::Response& res) {
    if (req.method != "HEAD") return httplib::Server::HandlerResponse::Unhandled;
    res.status = 405;
    return httplib::Server::HandlerResponse::Handled;
  });
  add("layer_0.pt", "0123456789");
  auto from = origin();
  auto snapshot = load(*from, "m", "");
  ASSERT_TRUE(snapshot) << snapshot.error().what;
  EXPECT_EQ(snapshot->files[0].size, 10u);
}

TEST_F(BaseUrl, AFileThatChangedSinceIsStale) {
  add("layer_0.pt", "0123456789");
  auto from = origin();
  auto snapshot = load(*from, "m", "");
  ASSERT_TRUE(snapshot);
  changed = true;
  ReadOutcome outcome = Reading(*from, *snapshot, snapshot->files[0], {0, 5}).wait();
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kStale);
  EXPECT_EQ(outcome.bytes, "");
}

TEST_F(BaseUrl, ADeadServerIsOffline) {
  auto from = make_base_url_origin("http://127.0.0.1:" + std::to_string(test::dead_port()), false,
                                   3, http, timers, std::chrono::milliseconds(1));
  EXPECT_EQ(load(*from, "m", "").error().code, Code::kOffline);
  EXPECT_FALSE(from->reachable());
}

TEST_F(BaseUrl, CredentialsInTheUrlAreUsedAndNotShown) {
  auto from =
      make_base_url_origin("http://me:secret@127.0.0.1:" + std::to_string(test::dead_port()), false,
                           1, http, timers, std::chrono::milliseconds(1));
  EXPECT_EQ(from->describe().find("secret"), std::string::npos);
  EXPECT_EQ(load(*from, "m", "").error().what.find("secret"), std::string::npos);
}

}  // namespace
}  // namespace nexus
