#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tools/common/control_client.h"
#include "tools/common/control_server.h"
#include "tools/common/mount_table.h"
#include "tools/common/stats_json.h"

namespace nexus::tools {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;
constexpr auto kWait = 30s;  // only a hang reaches it

Environment variables(std::map<std::string, std::string> values) {
  return [values](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  };
}

class ToolsControl : public testing::Test {
 protected:
  ToolsControl() {
    std::string pattern = testing::TempDir() + "nexus-control-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    path_ = directory_ + "/test.sock";
  }
  ~ToolsControl() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<ControlServer> start(ControlServer::Handler handler) {
    auto server = ControlServer::start({path_, allowed_}, std::move(handler));
    EXPECT_TRUE(server) << server.error().what;
    return std::move(*server);
  }
  static void echo(const Json& request, const ControlServer::Reply& reply) { reply(request); }
  Result<Json> ask(const Json& request) const {
    auto client = ControlClient::connect(path_);
    if (!client) return tl::unexpected(client.error());
    return client->call(request, kWait);
  }
  // A connection that does as it is told, for clients that misbehave.
  int raw_connection() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  static std::string read_line(int fd) {
    std::string line;
    char c = 0;
    while (read(fd, &c, 1) == 1 && c != '\n') line.push_back(c);
    return line;
  }

  std::string directory_, path_;
  std::function<bool(uid_t)> allowed_ = [](uid_t uid) { return peer_allowed(uid, geteuid()); };
};

TEST_F(ToolsControl, AnswersARequest) {
  const auto server = start(echo);
  const auto answer = ask(Json{{"command", "hello"}, {"model", "org/m\n"}});
  ASSERT_TRUE(answer) << answer.error().what;
  EXPECT_EQ((*answer)["model"], "org/m\n");
}

TEST_F(ToolsControl, CarriesAnErrorWithItsCode) {
  const auto server = start([](const Json&, const ControlServer::Reply& reply) {
    reply(fail(Code::kNotFound, "org/absent: no such model"));
  });
  const auto answer = ask(Json{{"command", "refresh"}});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Code::kNotFound);
  EXPECT_EQ(answer.error().what, "org/absent: no such model");
}

TEST_F(ToolsControl, NamesThePeer) {
  const auto server = start(echo);
  const auto client = ControlClient::connect(path_);
  ASSERT_TRUE(client);
  EXPECT_EQ(client->peer().pid, getpid());
  EXPECT_EQ(client->peer().uid, geteuid());
}

TEST_F(ToolsControl, RefusesOtherUsers) {
  EXPECT_TRUE(peer_allowed(1000, 1000));
  EXPECT_TRUE(peer_allowed(0, 1000));
  EXPECT_FALSE(peer_allowed(1001, 1000));
  EXPECT_FALSE(peer_allowed(1000, 0));

  allowed_ = [](uid_t) { return false; };
  bool handled = false;
  const auto server = start([&](const Json&, const ControlServer::Reply&) { handled = true; });
  const auto answer = ask(Json{{"command", "unmount"}});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Code::kAccess);
  EXPECT_FALSE(handled);
}

TEST_F(ToolsControl, SocketIsPrivate) {
  const auto server = start(echo);
  struct stat status {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(ToolsControl, RefusesWhatIsNotARequest) {
  const auto server = start(echo);
  for (const std::string text : {"junk\n", "[]\n", "{}\n", "{\"command\": 3}\n", "\n"}) {
    const int fd = raw_connection();
    ASSERT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    const auto answer = decode_answer(read_line(fd));
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().code, Code::kInvalid);
    close(fd);
  }
}

TEST_F(ToolsControl, BoundsTheRequest) {
  const auto server = start(echo);
  const auto answer = ask(Json{{"command", std::string(2 * kRequestBytesMax, 'x')}});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Code::kLimit);
}

TEST_F(ToolsControl, CarriesALargeAnswer) {
  const auto server = start([](const Json&, const ControlServer::Reply& reply) {
    reply(Json(std::string(5 << 20, 'x')));
  });
  const auto answer = ask(Json{{"command", "ls"}});
  ASSERT_TRUE(answer) << answer.error().what;
  EXPECT_EQ(answer->get<std::string>().size(), 5u << 20);
}

TEST_F(ToolsControl, ASilentOrSlowClientDelaysNobody) {
  const auto server = start([](const Json& request, const ControlServer::Reply& reply) {
    if (request["command"] == "large") return reply(Json(std::string(5 << 20, 'x')));
    reply("quick");
  });
  const int silent = raw_connection();
  const int half = raw_connection();
  ASSERT_EQ(write(half, "{\"comm", 6), 6);
  const int slow = raw_connection();  // asks for much and reads nothing
  const std::string request = "{\"command\":\"large\"}\n";
  ASSERT_EQ(write(slow, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  for (int i = 0; i < 20; ++i) {
    const auto answer = ask(Json{{"command", "quick"}});
    ASSERT_TRUE(answer) << answer.error().what;
  }
  for (int fd : {silent, half, slow}) close(fd);
}

TEST_F(ToolsControl, ServesManyClientsAtOnce) {
  const auto server = start(echo);
  std::vector<std::thread> threads;
  std::atomic<int> answered{0};
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 20; ++n) {
        const auto answer = ask(Json{{"command", "c"}, {"n", i * 100 + n}});
        if (answer && (*answer)["n"] == i * 100 + n) ++answered;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(answered, 16 * 20);
}

TEST_F(ToolsControl, AReplyMayComeLaterFromAnotherThread) {
  std::mutex mutex;
  std::vector<ControlServer::Reply> waiting;
  const auto server = start([&](const Json& request, ControlServer::Reply reply) {
    if (request["command"] == "now") return reply("now");
    std::lock_guard lock(mutex);
    waiting.push_back(std::move(reply));
  });
  auto client = ControlClient::connect(path_);
  ASSERT_TRUE(client);
  std::thread asker([&] {
    EXPECT_EQ(client->call(Json{{"command", "later"}}, kWait).value(), "later");
  });
  EXPECT_EQ(ask(Json{{"command", "now"}}).value(), "now");
  while (true) {
    std::lock_guard lock(mutex);
    if (waiting.empty()) continue;
    waiting.front()("later");
    waiting.front()("twice");  // ignored
    break;
  }
  asker.join();
}

TEST_F(ToolsControl, ProgressComesBeforeTheAnswer) {
  const auto server = start([](const Json&, const ControlServer::Reply& reply) {
    reply.progress(Json{{"done", 1}});
    reply("the end");
  });
  auto client = ControlClient::connect(path_);
  ASSERT_TRUE(client);
  std::vector<Json> seen;
  const auto answer = client->call(Json{{"command", "long"}}, kWait,
                                   [&](const Json& progress) { seen.push_back(progress); });
  EXPECT_EQ(answer.value(), "the end");
  EXPECT_EQ(seen, std::vector<Json>{Json({{"done", 1}})});
}

TEST_F(ToolsControl, AClientThatLeavesIsReportedOnce) {
  std::promise<void> asked, gone;
  std::atomic<int> times{0};
  const auto server = start([&](const Json&, const ControlServer::Reply& reply) {
    reply.on_gone([&] {
      if (++times == 1) gone.set_value();
    });
    reply.progress(Json{{"done", 1}});
    asked.set_value();
  });
  const int fd = raw_connection();
  const std::string request = "{\"command\":\"long\"}\n";
  ASSERT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  asked.get_future().wait();
  close(fd);
  gone.get_future().wait();
  EXPECT_EQ(times, 1);
}

TEST_F(ToolsControl, AnAnsweredClientIsNotReportedAsGone) {
  std::atomic<bool> gone{false};
  auto server = start([&](const Json&, const ControlServer::Reply& reply) {
    reply.on_gone([&] { gone = true; });
    reply("done");
  });
  EXPECT_EQ(ask(Json{{"command", "short"}}).value(), "done");
  server->stop();
  EXPECT_FALSE(gone);
}

TEST_F(ToolsControl, StopTellsThoseWhoWorkForAClient) {
  std::promise<void> asked;
  std::atomic<bool> gone{false};
  auto server = start([&](const Json&, const ControlServer::Reply& reply) {
    reply.on_gone([&] { gone = true; });
    asked.set_value();
  });
  const int fd = raw_connection();
  const std::string request = "{\"command\":\"long\"}\n";
  ASSERT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  asked.get_future().wait();
  server->stop();
  EXPECT_TRUE(gone);
  close(fd);
}

TEST_F(ToolsControl, StopSendsWhatIsAnsweredAndRemovesTheSocket) {
  ControlServer::Reply kept;
  auto server = start([&](const Json&, ControlServer::Reply reply) {
    reply(Json{{"pid", 1}});
    kept = std::move(reply);
  });
  EXPECT_TRUE(ask(Json{{"command", "unmount"}}));
  server->stop();
  server->stop();
  EXPECT_FALSE(std::filesystem::exists(path_));
  kept("after the end");  // must do nothing
  EXPECT_EQ(ask(Json{{"command", "status"}}).error().code, Code::kNotFound);
}

TEST_F(ToolsControl, ADeadSocketIsReplacedALivingOneIsNot) {
  const int dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  ASSERT_EQ(bind(dead, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  close(dead);
  const auto server = start(echo);
  const auto second = ControlServer::start({path_, allowed_}, echo);
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().what, HasSubstr("already answers"));
  EXPECT_TRUE(ask(Json{{"command", "still there"}}));
}

TEST_F(ToolsControl, AServerLeavesTheSocketOfItsSuccessorAlone) {
  auto server = start(echo);
  std::filesystem::remove(path_);
  const auto successor = start(echo);
  server->stop();
  EXPECT_TRUE(ask(Json{{"command", "still there"}}));
}

TEST(SocketPath, IsAHashInTheUsersRuntimeDirectory) {
  const std::string name = socket_name("/mnt/nexus");
  EXPECT_EQ(name.size(), 16 + std::strlen(".sock"));
  EXPECT_EQ(name, socket_name("/mnt/nexus"));
  EXPECT_NE(name, socket_name("/mnt/nexus2"));
  EXPECT_EQ(runtime_directory(0, variables({{"XDG_RUNTIME_DIR", "/x"}})), "/run/nexusfs");
  EXPECT_EQ(runtime_directory(1000, variables({{"XDG_RUNTIME_DIR", "/x"}})), "/x/nexusfs");
  EXPECT_EQ(runtime_directory(4242424, variables({})), "/tmp/nexusfs-4242424");
}

TEST_F(ToolsControl, RuntimeDirectoryIsPrivateAndOurs) {
  // One that was made too open is closed. Root plays an ordinary user: its own is /run/nexusfs.
  const uid_t user = geteuid() == 0 ? 1000 : geteuid();
  const std::string path = directory_ + "/nexusfs";
  ASSERT_EQ(mkdir(path.c_str(), 0755), 0);
  ASSERT_EQ(chown(path.c_str(), user, static_cast<gid_t>(-1)), 0);
  const auto made = make_runtime_directory(user, variables({{"XDG_RUNTIME_DIR", directory_}}));
  ASSERT_TRUE(made) << made.error().what;
  struct stat status {};
  ASSERT_EQ(stat(made->c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
}

TEST_F(ToolsControl, ARuntimeDirectoryOfAnotherUserIsRefused) {
  const uid_t other = geteuid() + 1;
  const auto made = make_runtime_directory(other, variables({{"XDG_RUNTIME_DIR", directory_}}));
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().what, HasSubstr("belongs to uid"));
}

TEST(MountTable, ReadsMountinfo) {
  const auto entries = parse_mountinfo(
      "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
      "broken line\n"
      "90 22 0:50 / /mnt/with\\040space rw,nosuid,nodev - fuse.nexusfs nexusfs rw,user_id=0\n"
      "91 22 0:51 / /mnt/x rw shared:1 master:2 - ext4 /dev/sda1 rw\n");
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[1].device, "0:50");
  EXPECT_EQ(entries[1].mountpoint, "/mnt/with space");
  EXPECT_TRUE(entries[1].is_nexus());
  EXPECT_EQ(entries[2].type, "ext4");
  EXPECT_FALSE(entries[2].is_nexus());
}

TEST_F(ToolsControl, CanonicalMountpointResolvesLinksButNotTheLastDirectory) {
  const std::string real = std::filesystem::canonical(directory_).string();
  std::filesystem::create_directory(real + "/dir");
  std::filesystem::create_directory_symlink(real + "/dir", real + "/link");
  EXPECT_EQ(canonical_mountpoint(real + "/link").value(), real + "/dir");
  EXPECT_EQ(canonical_mountpoint(real + "/link/absent///").value(), real + "/dir/absent");
  EXPECT_EQ(canonical_mountpoint(real + "/dir/../dir/.").value(), real + "/dir");
  EXPECT_FALSE(canonical_mountpoint(real + "/absent/absent"));
  EXPECT_FALSE(canonical_mountpoint(""));
}

std::vector<std::string> keys(const Json& object) {
  std::vector<std::string> names;
  for (const auto& item : object.items()) names.push_back(item.key());
  return names;
}

TEST(StatsJson, HasTheKeysThatUsersAreTold) {
  CacheStats stats;
  stats.disk_cache_bytes = 1'500'000'000;
  stats.total_hits = 3;
  stats.total_misses = 1;
  stats.zones = {ZoneInfo{"/c/zone_0", "ssd", 10, 20, 5, "ok"}};
  const Json json = stats_json(stats);
  using testing::ElementsAre;
  EXPECT_THAT(
      keys(json),
      ElementsAre("disk_cache_entries", "memory_cache_entries", "disk_cache_size_gb",
                  "memory_cache_size_gb", "max_disk_cache_size_gb", "max_memory_cache_size_gb",
                  "performance", "prefetcher", "downloader", "scrub", "migration", "zones"));
  EXPECT_THAT(keys(json["performance"]),
              ElementsAre("total_hits", "total_misses", "total_evictions", "cache_hit_ratio",
                          "total_requests", "avg_latency_ms", "reads_waited", "read_wait_s",
                          "bytes_downloaded", "bytes_served_from_cache"));
  EXPECT_THAT(keys(json["prefetcher"]),
              ElementsAre("cache_hits", "total_requests", "prefetch_hit_ratio", "avg_latency_ms",
                          "queue_depth", "wasted_bytes", "issued_bytes", "used_bytes"));
  EXPECT_THAT(keys(json["downloader"]), ElementsAre("active_downloads", "queue", "hosts"));
  ASSERT_TRUE(json["zones"].is_array());
  EXPECT_THAT(keys(json["zones"][0]),
              ElementsAre("path", "tier", "bytes_written", "size", "used", "health"));
  EXPECT_DOUBLE_EQ(json["disk_cache_size_gb"].get<double>(), 1.5);
  EXPECT_DOUBLE_EQ(json["performance"]["cache_hit_ratio"].get<double>(), 0.75);
}

TEST(StatsJson, ANewMountDividesByNothing) {
  EXPECT_EQ(stats_json(CacheStats{})["performance"]["cache_hit_ratio"].get<double>(), 0.0);
  EXPECT_TRUE(stats_json(CacheStats{})["zones"].is_array());
}

TEST(StatsJson, OfOneModelCountsItsObjectsAlone) {
  CachedObject ssd{"org/a", "org/a@c/x", {}}, ram{"org/a", "org/a@c/y", {}},
      other{"org/b", "org/b@c/x", {}};
  ssd.info.tier = "ssd";
  ssd.info.zone = 0;
  ssd.info.bytes_cached = 1'000'000'000;
  ssd.info.hits = 2;
  ram.info.tier = "ram";
  ram.info.bytes_cached = 500'000'000;
  const Json json = model_stats_json("org/a", {ssd, ram, other});
  EXPECT_EQ(json["disk_cache_entries"], 1);
  EXPECT_EQ(json["memory_cache_entries"], 1);
  EXPECT_DOUBLE_EQ(json["memory_cache_size_gb"].get<double>(), 0.5);
  EXPECT_EQ(json["performance"]["total_hits"], 2);
}

TEST(ObjectsJson, ShowsRateAndTimeLeftOfWhatIsFetched) {
  CachedObject fetching{"org/a", "org/a@c/b", {}}, done{"org/a", "org/a@c/a", {}};
  fetching.info.state = ObjectState::kFetching;
  fetching.info.size = 1000;
  fetching.info.bytes_cached = 250;
  done.info.state = ObjectState::kResident;
  const Json list = objects_json({fetching, done}, {Progress{"org/a@c/b", 250, 1000, 75.0, 2}});
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["name"], "org/a@c/a");
  EXPECT_EQ(list[0]["percent"], 100.0);
  EXPECT_FALSE(list[0].contains("eta_s"));
  EXPECT_EQ(list[1]["state"], "fetching");
  EXPECT_EQ(list[1]["percent"], 25.0);
  EXPECT_EQ(list[1]["eta_s"], 10.0);
  EXPECT_EQ(list[1]["waiters"], 2);
}

}  // namespace
}  // namespace nexus::tools
