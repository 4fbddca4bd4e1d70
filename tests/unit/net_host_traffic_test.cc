#include <gtest/gtest.h>

#include "backend/net/host_traffic.h"

namespace nexus {
namespace {

using std::chrono::milliseconds;

TEST(HostTraffic, CountsWhatCameAndHowFastWhileBusy) {
  HostMeters meters;
  const auto meter = meters.of("http://a:80");
  EXPECT_EQ(meters.of("http://a:80"), meter);
  HostMeter::Time now{};
  meter->begin(now);
  meter->body(1000, now += milliseconds(500));
  meter->end(false, 12, 30);
  meter->begin(now += std::chrono::hours(1));  // idle meanwhile: not a slow link
  meter->body(1000, now += milliseconds(500));
  meter->end(true, 0, 0);
  meter->retry();
  meter->hedge();
  const HostTraffic traffic = meters.list().at(0);
  EXPECT_EQ(traffic.origin, "http://a:80");
  EXPECT_EQ(traffic.requests, 2u);
  EXPECT_EQ(traffic.failed, 1u);
  EXPECT_EQ(traffic.retries, 1u);
  EXPECT_EQ(traffic.hedges, 1u);
  EXPECT_EQ(traffic.bytes, 2000u);
  EXPECT_EQ(traffic.active, 0u);
  EXPECT_DOUBLE_EQ(traffic.bytes_per_s, 2000);
  EXPECT_DOUBLE_EQ(traffic.round_trip_ms, 12);
  EXPECT_DOUBLE_EQ(traffic.first_byte_ms, 30);
}

TEST(HostTraffic, ARequestIsWorthThirtyTwoRoundTripsOfItsConnection) {
  HostTraffic small{"http://hub"}, cdn{"http://cdn"};
  small.bytes = 10;
  small.bytes_per_s = 1e9;
  small.first_byte_ms = 1000;
  cdn.bytes = 1000;
  cdn.bytes_per_s = 320e6;
  cdn.first_byte_ms = 20;
  EXPECT_EQ(bytes_worth_a_request({}, 8), 0u);
  EXPECT_EQ(bytes_worth_a_request({small, cdn}, 8), 25'600'000u);
  cdn.first_byte_ms = 0;  // not known
  EXPECT_EQ(bytes_worth_a_request({small, cdn}, 8), 0u);
}

TEST(HostTraffic, TheNumberOfHostsIsBounded) {
  HostMeters meters;
  for (int i = 0; i < 1000; ++i) {
    const auto meter = meters.of("http://h" + std::to_string(i));
    meter->begin({});
    meter->end(false, 0, 0);
  }
  const auto all = meters.list();
  EXPECT_EQ(all.size(), 65u);
  EXPECT_EQ(all.back().origin, "others");
  EXPECT_EQ(all.back().requests, 1000u - 64);
}

}  // namespace
}  // namespace nexus
