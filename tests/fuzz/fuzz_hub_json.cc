// The hub's answers, from any bytes: parse_model_info, parse_tree_page, next_page, and what they
// feed.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "backend/origin/answer_check.h"
#include "backend/origin/hub.h"

namespace {

void check(nexus::Snapshot& snapshot) {
  nexus::sanitize_files(snapshot);
  for (size_t i = 0; i < snapshot.files.size(); ++i) {
    const auto& file = snapshot.files[i];
    if (!nexus::valid_model_path(file.path)) std::abort();
    if (file.size > INT64_MAX) std::abort();
    if (i > 0 && !(snapshot.files[i - 1].path < file.path)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto snapshot = nexus::parse_model_info(text, "org/m", "main")) {
    if (!nexus::valid_repo_name(snapshot->repo)) std::abort();
    check(*snapshot);
  }
  nexus::Snapshot tree;
  if (nexus::parse_tree_page(text, tree)) check(tree);
  static_cast<void>(nexus::next_page(text));
  static_cast<void>(nexus::parse_content_range(text));
  return 0;
}
