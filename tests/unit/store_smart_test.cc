// What is shown of a device's own wear: which device a zone lies on, and what is said where none.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "backend/store/smart.h"
#include "tests/unit/store_test_support.h"

namespace nexus::store_test {
namespace {

// A /sys/dev/block in which this directory's device is `target`.
class FakeSys {
 public:
  FakeSys(const TempDir& dir, const std::string& target) : links_(dir / "block") {
    fs::create_directories(links_);
    fs::create_directories(dir / ("devices/" + target));
    struct stat st {};
    ::stat(dir.path().c_str(), &st);
    device_ = st.st_dev;
    fs::create_directory_symlink(
        dir / ("devices/" + target),
        links_ + "/" + std::to_string(major(device_)) + ":" + std::to_string(minor(device_)));
  }
  const std::string& links() const { return links_; }
  uint64_t device() const { return device_; }

 private:
  std::string links_;
  uint64_t device_ = 0;
};

TEST(Smart, AZoneOnNvmeShowsWhatItsControllerSays) {
  TempDir dir;
  const FakeSys sys(dir, "nvme12/nvme12n1/nvme12n1p3");
  std::string asked;
  const auto reader = [&](const std::string& controller) -> Result<SmartHealth> {
    asked = controller;
    return SmartHealth{7, 512'000'000};
  };
  const auto health = smart_of(dir.path(), reader, sys.links());
  ASSERT_TRUE(health.has_value()) << health.error().what;
  EXPECT_EQ(asked, "nvme12");
  EXPECT_EQ(health->percentage_used, 7);
  EXPECT_EQ(health->bytes_written, 512'000'000u);
}

TEST(Smart, AVolumeShowsTheFirstDeviceBelow) {
  TempDir dir;
  const FakeSys sys(dir, "virtual/dm-0");
  for (const char* slave : {"sda1", "nvme3n1p1", "nvme1n1"}) {
    fs::create_directories(dir / (std::string("devices/virtual/dm-0/slaves/") + slave));
  }
  EXPECT_EQ(nvme_controller_of(sys.device(), sys.links()), "nvme1");
}

TEST(Smart, AnotherDeviceIsNotAsked) {
  TempDir dir;
  const FakeSys sys(dir, "virtual/sda/sda1");
  const auto reader = [](const std::string&) -> Result<SmartHealth> {
    ADD_FAILURE() << "asked";
    return SmartHealth{};
  };
  EXPECT_EQ(smart_of(dir.path(), reader, sys.links()).error().code, Code::kUnsupported);
  EXPECT_EQ(smart_of(dir.path(), reader, dir / "nothing").error().code, Code::kUnsupported);
  EXPECT_EQ(smart_of(dir / "missing", reader, sys.links()).error().code, Code::kUnsupported);
}

TEST(Smart, AControllerThatIsNotThereIsAnError) {
  EXPECT_FALSE(read_smart("nvme999").has_value());
}

}  // namespace
}  // namespace nexus::store_test
