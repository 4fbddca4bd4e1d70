#include "tools/common/control_protocol.h"

#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace nexus::tools {
namespace {

namespace files = std::filesystem;

constexpr const char* kRootDirectory = "/run/nexusfs";
constexpr const char* kUserDirectories = "/run/user";
constexpr std::pair<Code, const char*> kCodeWords[] = {{Code::kNotFound, "not_found"},
                                                       {Code::kAccess, "access"},
                                                       {Code::kOffline, "offline"},
                                                       {Code::kOrigin, "origin"},
                                                       {Code::kCorrupt, "corrupt"},
                                                       {Code::kInvalid, "invalid"},
                                                       {Code::kUnsupported, "unsupported"},
                                                       {Code::kCancelled, "cancelled"},
                                                       {Code::kNoSpace, "no_space"},
                                                       {Code::kDisk, "disk"},
                                                       {Code::kStale, "stale"},
                                                       {Code::kLimit, "limit"}};

// Never throws: bytes that are not UTF-8 become replacement characters.
std::string to_line(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string code_word(Code code) {
  for (const auto& [known, word] : kCodeWords) {
    if (known == code) return word;
  }
  return "invalid";
}

Code code_of(const std::string& word) {
  for (const auto& [code, known] : kCodeWords) {
    if (word == known) return code;
  }
  return Code::kInvalid;
}

bool is_directory(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string user_directory(uid_t uid) {
  const std::string base = std::string(kUserDirectories) + "/" + std::to_string(uid);
  return is_directory(base) ? base + "/nexusfs" : "/tmp/nexusfs-" + std::to_string(uid);
}

}  // namespace

std::string encode_request(const Json& request) {
  return to_line(request);
}

Result<Json> decode_request(std::string_view line) {
  Json request = Json::parse(line, nullptr, false);
  if (!request.is_object() || !request.contains("command") || !request["command"].is_string()) {
    return fail(Code::kInvalid, "a request is a JSON object with a \"command\"");
  }
  return request;
}

std::string encode_answer(const Result<Json>& answer) {
  if (answer) {
    std::string line = to_line(Json{{"ok", true}, {"result", *answer}});
    if (line.size() < kAnswerBytesMax) return line;
    return encode_answer(fail(Code::kLimit, "the answer is larger than 64 MiB; ask for one model"));
  }
  return to_line(Json{
      {"ok", false}, {"error", answer.error().what}, {"code", code_word(answer.error().code)}});
}

Result<Json> decode_answer(std::string_view line) {
  const Json answer = Json::parse(line, nullptr, false);
  if (answer.is_object() && answer.contains("ok") && answer["ok"].is_boolean()) {
    if (answer["ok"].get<bool>() && answer.contains("result")) return answer["result"];
    if (!answer["ok"].get<bool>() && answer.contains("error") && answer["error"].is_string()) {
      const bool has_code = answer.contains("code") && answer["code"].is_string();
      return fail(has_code ? code_of(answer["code"].get<std::string>()) : Code::kInvalid,
                  answer["error"].get<std::string>());
    }
  }
  return fail(Code::kCorrupt, "the daemon sent an answer that is not understood");
}

bool peer_allowed(uid_t peer, uid_t owner) {
  return peer == owner || peer == 0;
}

std::string socket_name(const std::string& mountpoint) {
  char name[32];
  std::snprintf(name, sizeof name, "%016llx.sock",
                static_cast<unsigned long long>(XXH3_64bits(mountpoint.data(), mountpoint.size())));
  return name;
}

std::string runtime_directory(uid_t uid, const Environment& environment) {
  if (uid == 0) return kRootDirectory;
  if (auto xdg = environment("XDG_RUNTIME_DIR")) return *xdg + "/nexusfs";
  return user_directory(uid);
}

Result<std::string> make_runtime_directory(uid_t uid, const Environment& environment) {
  const std::string path = runtime_directory(uid, environment);
  const auto bad = [&](const std::string& why) {
    return fail(Code::kInvalid, "directory of the control socket " + path + ": " + why);
  };
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return bad(std::strerror(errno));
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) return bad(std::strerror(errno));
  if (!S_ISDIR(status.st_mode)) return bad("is not a directory");
  if (status.st_uid != uid) return bad("belongs to uid " + std::to_string(status.st_uid));
  if ((status.st_mode & 077) != 0 && chmod(path.c_str(), 0700) != 0)
    return bad(std::strerror(errno));
  return path;
}

std::vector<std::string> socket_directories(uid_t uid, const Environment& environment) {
  std::vector<std::string> directories = {runtime_directory(uid, environment)};
  const auto add = [&](const std::string& path) {
    if (std::find(directories.begin(), directories.end(), path) == directories.end() &&
        is_directory(path)) {
      directories.push_back(path);
    }
  };
  if (uid != 0) {
    add(user_directory(uid));
    add("/tmp/nexusfs-" + std::to_string(uid));
    add(kRootDirectory);
    return directories;
  }
  if (auto xdg = environment("XDG_RUNTIME_DIR")) add(*xdg + "/nexusfs");
  std::error_code ignored;
  for (const auto& user : files::directory_iterator(kUserDirectories, ignored)) {
    add(user.path().string() + "/nexusfs");
  }
  for (const auto& entry : files::directory_iterator("/tmp", ignored)) {
    if (entry.path().filename().string().rfind("nexusfs-", 0) == 0) add(entry.path().string());
  }
  return directories;
}

std::vector<std::string> find_sockets(const std::vector<std::string>& directories) {
  std::vector<std::string> sockets;
  for (const std::string& directory : directories) {
    std::error_code ignored;
    for (const auto& entry : files::directory_iterator(directory, ignored)) {
      if (entry.path().extension() == ".sock") sockets.push_back(entry.path().string());
    }
  }
  std::sort(sockets.begin(), sockets.end());
  return sockets;
}

}  // namespace nexus::tools
