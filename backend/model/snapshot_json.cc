#include <cstdint>

#include "backend/model/snapshot_json.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>

namespace nexus {

namespace {
bool still_there(const std::string& path, uint64_t size) {
  struct stat st {};
  return !path.empty() && ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) &&
         static_cast<uint64_t>(st.st_size) == size;
}
}  // namespace

std::string snapshot_to_json(const Snapshot& snapshot) {
  nlohmann::json json{{"repo", snapshot.repo},
                      {"revision", snapshot.revision},
                      {"commit", snapshot.commit},
                      {"restricted", snapshot.restricted},
                      {"pre_split", snapshot.pre_split},
                      {"mtime_s", snapshot.mtime_s},
                      {"complaints", snapshot.complaints}};
  auto& files = json["files"] = nlohmann::json::array();
  for (const OriginFile& file : snapshot.files) {
    files.push_back({file.path, file.size, file.etag, file.sha256, file.local_path, file.error});
  }
  // A repo may hold names that are not UTF-8 in its complaints; they are shown, not used.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<Snapshot> snapshot_from_json(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    Snapshot snapshot;
    json.at("repo").get_to(snapshot.repo);
    json.at("revision").get_to(snapshot.revision);
    json.at("commit").get_to(snapshot.commit);
    json.at("restricted").get_to(snapshot.restricted);
    json.at("pre_split").get_to(snapshot.pre_split);
    json.at("mtime_s").get_to(snapshot.mtime_s);
    json.at("complaints").get_to(snapshot.complaints);
    for (const auto& entry : json.at("files")) {
      OriginFile file;
      entry.at(0).get_to(file.path);
      entry.at(1).get_to(file.size);
      entry.at(2).get_to(file.etag);
      entry.at(3).get_to(file.sha256);
      entry.at(4).get_to(file.local_path);
      entry.at(5).get_to(file.error);
      if (!still_there(file.local_path, file.size)) file.local_path.clear();
      snapshot.files.push_back(std::move(file));
    }
    sanitize_files(snapshot);
    return snapshot;
  } catch (const nlohmann::json::exception& error) {
    return fail(Code::kCorrupt, std::string("catalog: stored listing: ") + error.what());
  }
}

}  // namespace nexus
