#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/common/config.h"
#include "tools/common/listen_address.h"

namespace nexus::tools {
namespace {

using testing::HasSubstr;

TEST(ListenAddress, AnAddressOrAPortOfLoopback) {
  EXPECT_EQ(parse_listen_address("9464")->text(), "127.0.0.1:9464");
  EXPECT_EQ(parse_listen_address("0.0.0.0:80")->text(), "0.0.0.0:80");
  EXPECT_EQ(parse_listen_address("[::1]:65535")->text(), "[::1]:65535");
  EXPECT_EQ(parse_listen_address("127.0.0.1:0")->port, 0);
}

TEST(ListenAddress, WhatIsNoneIsRefused) {
  for (const char* text : {"", ":", ":1", "localhost:9464", "::1:9464", "[::1", "[127.0.0.1]:1", "1.2.3:4",
                           "127.0.0.1", "127.0.0.1:", "65536", "-1", "12x", "127.0.0.1:1,127.0.0.1:2"}) {
    const auto address = parse_listen_address(text);
    ASSERT_FALSE(address) << text;
    EXPECT_EQ(address.error().code, Code::kInvalid);
  }
}

TEST(ListenAddress, APortInUseIsNamedWithTheSystemsReason) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(here);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&here), length), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&here), &length), 0);
  const auto taken = check_listen_address({"127.0.0.1", ntohs(here.sin_port)});
  ASSERT_FALSE(taken);
  EXPECT_THAT(taken.error().what, HasSubstr("127.0.0.1:" + std::to_string(ntohs(here.sin_port))));
  EXPECT_THAT(taken.error().what, HasSubstr("in use"));
  EXPECT_TRUE(check_listen_address({"127.0.0.1", 0}));
  ::close(fd);
}

TEST(ListenAddress, TheConfigTakesAPortOrAString) {
  const auto listen = [](const std::string& value) {
    Config config;
    const auto ok = apply_toml("metrics_listen = " + value, "c.toml", "/home", config);
    if (!ok) return ok.error().what;
    return config.metrics_listen ? config.metrics_listen->text() : std::string("off");
  };
  EXPECT_FALSE(Config().metrics_listen);
  EXPECT_EQ(listen("9464"), "127.0.0.1:9464");
  EXPECT_EQ(listen("\"9464\""), "127.0.0.1:9464");
  EXPECT_EQ(listen("\"192.0.2.1:80\""), "192.0.2.1:80");
  EXPECT_EQ(listen("\"\""), "off");
  EXPECT_THAT(listen("\"localhost:80\""), HasSubstr("c.toml:1: metrics_listen: 'localhost:80'"));
  EXPECT_THAT(listen("70000"), HasSubstr("0 to 65535"));
  EXPECT_THAT(listen("true"), HasSubstr("must be a port"));
}

}  // namespace
}  // namespace nexus::tools
