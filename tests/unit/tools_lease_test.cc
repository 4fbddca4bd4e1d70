// The control socket's descriptors and leases, and the link by which cache_dir's owner is found.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "tools/common/control_client.h"
#include "tools/common/control_link.h"
#include "tools/common/control_server.h"

namespace nexus::tools {
namespace {

using namespace std::chrono_literals;
constexpr auto kWait = 60s;  // only a hang reaches it

// Counts the leases that are held.
class Leases {
 public:
  std::shared_ptr<void> take() {
    change(1);
    return std::shared_ptr<void>(this, [](void* self) { static_cast<Leases*>(self)->change(-1); });
  }
  bool become(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kWait, [&] { return count_ == count; });
  }

 private:
  void change(int by) {
    std::lock_guard lock(mutex_);
    count_ += by;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

std::shared_ptr<const Descriptor> file_with(const std::string& text) {
  const int fd = memfd_create("test", MFD_CLOEXEC);
  EXPECT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return std::make_shared<const Descriptor>(fd);
}

std::string text_in(const Descriptor& file) {
  char buffer[64] = {};
  const ssize_t got = pread(file.get(), buffer, sizeof buffer, 0);
  return {buffer, got > 0 ? static_cast<size_t>(got) : 0};
}

class ToolsLeaseConcurrent : public testing::Test {
 protected:
  ToolsLeaseConcurrent() {
    std::string pattern = testing::TempDir() + "nexus-lease-XXXXXX";
    directory_ = mkdtemp(pattern.data());
  }
  ~ToolsLeaseConcurrent() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<ControlServer> start(ControlServer::Handler handler) {
    auto server = ControlServer::start({directory_ + "/socket", [](uid_t) { return true; }},
                                       std::move(handler));
    EXPECT_TRUE(server);
    return std::move(*server);
  }
  Result<ControlClient> client() const { return ControlClient::connect(directory_ + "/socket"); }
  std::unique_ptr<ControlServer> lender() {
    return start([this, file = file_with("lent")](const Json&, const ControlServer::Reply& reply) {
      reply.lend(Json{{"n", 1}}, file, leases_.take());
    });
  }

  std::string directory_;
  Leases leases_;
};

TEST_F(ToolsLeaseConcurrent, AFileIsLentUntilTheClientGoes) {
  const auto server = lender();
  {
    auto connection = client();
    ASSERT_TRUE(connection);
    auto answer = connection->call(Json{{"command", "x"}}, kWait);
    ASSERT_TRUE(answer) << answer.error().what;
    EXPECT_EQ((*answer)["n"], 1);
    const auto file = connection->take_descriptor();
    ASSERT_TRUE(file);
    EXPECT_EQ(text_in(*file), "lent");
    EXPECT_TRUE(leases_.become(1));
  }
  EXPECT_TRUE(leases_.become(0));
}

TEST_F(ToolsLeaseConcurrent, LeasesDoNotKeepOthersOut) {
  const auto server = lender();
  // Few descriptors each: other tests of the process set a low limit.
  constexpr int kHolders = ControlServer::kClientsMax + 4;
  std::vector<ControlClient> holders;
  for (int i = 0; i < kHolders; ++i) {
    auto connection = client();
    ASSERT_TRUE(connection);
    ASSERT_TRUE(connection->call(Json{{"command", "x"}}, kWait));
    connection->take_descriptor();
    holders.push_back(std::move(*connection));
  }
  EXPECT_TRUE(leases_.become(kHolders));
  holders.clear();
  EXPECT_TRUE(leases_.become(0));
}

TEST_F(ToolsLeaseConcurrent, TheServersEndTakesEveryLeaseBack) {
  auto server = lender();
  auto connection = client();
  ASSERT_TRUE(connection);
  ASSERT_TRUE(connection->call(Json{{"command", "x"}}, kWait));
  server->stop();
  EXPECT_TRUE(leases_.become(0));
  EXPECT_EQ(text_in(*connection->take_descriptor()), "lent") << "the file itself stays";
}

TEST_F(ToolsLeaseConcurrent, AClientThatLeftBeforeTheAnswerHoldsNothing) {
  ControlServer::Reply kept;
  std::mutex mutex;
  std::condition_variable asked;
  bool here = false, gone = false;
  const auto server = start([&](const Json&, const ControlServer::Reply& reply) {
    std::lock_guard lock(mutex);
    kept = reply;
    here = true;
    reply.on_gone([&] {
      std::lock_guard inner(mutex);
      gone = true;
      asked.notify_all();
    });
    asked.notify_all();
  });
  {
    auto connection = client();
    ASSERT_TRUE(connection);
    EXPECT_FALSE(connection->call(Json{{"command", "x"}}, 1ms));
  }
  std::unique_lock lock(mutex);
  ASSERT_TRUE(asked.wait_for(lock, kWait, [&] { return here && gone; }));
  lock.unlock();
  kept.lend(Json::object(), file_with("late"), leases_.take());
  EXPECT_TRUE(leases_.become(0));
}

TEST_F(ToolsLeaseConcurrent, ARequestBringsItsFile) {
  const auto server = start([](const Json&, const ControlServer::Reply& reply) {
    reply(Json{{"text", reply.descriptor() ? text_in(*reply.descriptor()) : "none"}});
  });
  {
    auto connection = client();
    ASSERT_TRUE(connection);
    const auto file = file_with("brought");
    connection->attach(file->get());
    auto answer = connection->call(Json{{"command", "x"}}, kWait);
    ASSERT_TRUE(answer);
    EXPECT_EQ((*answer)["text"], "brought");
  }
  auto without = client();
  ASSERT_TRUE(without);
  EXPECT_EQ((*without->call(Json{{"command", "x"}}, kWait))["text"], "none");
}

TEST(ToolsControlLink, LeadsToTheSocketWhileItsOwnerLives) {
  std::string pattern = testing::TempDir() + "nexus-link-XXXXXX";
  const std::string directory = mkdtemp(pattern.data());
  EXPECT_EQ(control_socket_of(directory).error().code, Code::kNotFound);
  {
    auto link = ControlLink::make(directory, "/run/old.sock");
    ASSERT_TRUE(link);
  }
  EXPECT_FALSE(control_socket_of(directory));
  // What a killed owner left is replaced.
  std::filesystem::create_symlink("/run/old.sock", directory + "/control");
  auto link = ControlLink::make(directory, "/run/new.sock");
  ASSERT_TRUE(link) << link.error().what;
  EXPECT_EQ(*control_socket_of(directory), "/run/new.sock");
  EXPECT_FALSE(ControlLink::make(directory + "/none", "/run/x.sock"));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace nexus::tools
