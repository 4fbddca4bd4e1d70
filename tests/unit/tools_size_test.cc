#include <gtest/gtest.h>

#include <string>

#include "tools/common/progress_text.h"
#include "tools/common/size.h"

namespace nexus::tools {
namespace {

TEST(ParseSize, PlainBytesAndDecimalAndBinaryUnits) {
  EXPECT_EQ(parse_size("0").value(), 0u);
  EXPECT_EQ(parse_size("4096").value(), 4096u);
  EXPECT_EQ(parse_size("3K").value(), 3'000u);
  EXPECT_EQ(parse_size("3M").value(), 3'000'000u);
  EXPECT_EQ(parse_size("50G").value(), 50'000'000'000u);
  EXPECT_EQ(parse_size("2T").value(), 2'000'000'000'000u);
  EXPECT_EQ(parse_size("3GB").value(), 3'000'000'000u);
  EXPECT_EQ(parse_size("1KiB").value(), 1024u);
  EXPECT_EQ(parse_size("3MiB").value(), 3u << 20);
  EXPECT_EQ(parse_size("5GiB").value(), 5ull << 30);
  EXPECT_EQ(parse_size("7TiB").value(), 7ull << 40);
}

TEST(ParseSize, TakesAFractionOfAUnit) {
  EXPECT_EQ(parse_size("0.5G").value(), 500'000'000u);
  EXPECT_EQ(parse_size("1.5GiB").value(), 3ull << 29);
  EXPECT_EQ(parse_size("1.000001K").value(), 1000u);
}

TEST(ParseSize, RefusesJunk) {
  for (const char* text :
       {"",     " ",   "G",   "-1",  "+1",  "1 G",  "1G ",  "1g",     "1Gb",        "5Q",
        "1kib", "1.G", ".5G", "1.5", "1e3", "0x10", "1,5G", "1.5.5G", "1.0000000G", "12PiB"}) {
    const auto size = parse_size(text);
    ASSERT_FALSE(size) << text;
    EXPECT_EQ(size.error().code, Code::kInvalid);
  }
}

TEST(ParseSize, RefusesWhatDoesNotFitAnOffset) {
  EXPECT_EQ(parse_size("9223372036854775807").value(), 9223372036854775807u);
  for (const char* text : {"9223372036854775808", "18446744073709551616", "99999999999999999999999",
                           "9300000T", "8388608TiB", "9223372036854775807K"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(FormatSize, UsesThreeDigits) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(999), "999 B");
  EXPECT_EQ(format_size(1'500'000'000), "1.50 GB");
  EXPECT_EQ(format_size(45'600'000), "45.6 MB");
  EXPECT_EQ(format_size(999'900), "1.00 MB");
  EXPECT_EQ(format_rate(112e6), "112 MB/s");
  EXPECT_EQ(format_rate(-1), "0 B/s");
}

TEST(FormatDuration, NamesTwoUnits) {
  EXPECT_EQ(format_duration(42), "42 s");
  EXPECT_EQ(format_duration(63), "1 min 3 s");
  EXPECT_EQ(format_duration(7500), "2 h 5 min");
  EXPECT_EQ(format_duration(274'000), "3 d 4 h");
}

TEST(Printable, KeepsControlCharactersOffTheTerminal) {
  EXPECT_EQ(printable("a\x1b[2Jb\n\x7f"), "a?[2Jb??");
}

TEST(ProgressLine, IsEmptyWhenNothingIsFetched) {
  EXPECT_EQ(progress_line({}, 80), "");
}

TEST(ProgressLine, SaysWhatHowMuchAndHowFast) {
  const std::vector<Progress> progress = {
      {"org/m@c/config.json", 0, 1'000, 0, 0},
      {"org/m@c/layer_3.pt", 250'000'000, 1'000'000'000, 100e6, 2},
  };
  EXPECT_EQ(progress_line(progress, 0),
            "2 files, 250 MB of 1.00 GB, 100 MB/s, 7 s left: org/m@c/layer_3.pt 25 %");
  EXPECT_EQ(progress_line(progress, 10), "2 files, 2");
}

TEST(Size, IntervalsAreReadAndWritten) {
  using std::chrono::seconds;
  EXPECT_EQ(parse_interval("off").value(), seconds(0));
  EXPECT_EQ(parse_interval("90s").value(), seconds(90));
  EXPECT_EQ(parse_interval("10m").value(), seconds(600));
  EXPECT_EQ(parse_interval("12h").value(), seconds(43'200));
  EXPECT_EQ(parse_interval("7d").value(), seconds(604'800));
  for (const char* bad :
       {"", "7", "d", "0d", "-1d", "1.5h", "7 d", "7w", "99999999999999999999d"}) {
    EXPECT_FALSE(parse_interval(bad).has_value()) << bad;
  }
  for (const char* text : {"off", "90s", "10m", "12h", "7d"}) {
    EXPECT_EQ(format_interval(parse_interval(text).value()), text);
  }
}

}  // namespace
}  // namespace nexus::tools
