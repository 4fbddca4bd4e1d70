// How nexusctl and `nexusfs unmount` talk to a daemon: a Unix stream socket, one request and one
// answer a connection, each one line of JSON. Between them, of commands that take long, any number
// of lines {"progress": {...}}; closing the connection cancels those.
//
//   request   {"command": "refresh", "model": "org/name"}\n             at most kRequestBytesMax
//   answer    {"ok": true, "result": ...}\n                             at most kAnswerBytesMax
//             {"ok": false, "error": "text for people", "code": "not_found"}\n
//
//   command   members     result
//   status                version, mountpoint, pid, uptime_s, cache_dir, integrity, passthrough,
//   ... ls        [model]     {"objects": [{name, state, size, bytes_cached, tier, hits, ...}]}
//   stats                 the stats JSON (stats_json.h)
//   refresh   model       {"old": commit, "new": commit}
//   config                see tools/nexusfs/config_json.h
//   pin, unpin  model [layer]           {"pinned": bool}
//   invalidate  model [layer], or all   {"objects", "bytes"}
//   clear                               the same
//   flush                               {}; what is cached is durable
//   warm        model [layers] [wait]   {"files", "bytes", "failed": [text]}; progress with wait
//   verify      [model] [origin]        {"objects", "bytes", "matched_origin", "corrupt": [text]}
//   optimize                            verify's, orphan_files, orphan_bytes, catalog_bytes...
//   layer     model layer [quantization]   {"name", "size"}, and the file, lent: see below
//   put       model layer [quantization]   {"name", "size"}; durable. With the request comes a
//   sealed
//                                          memfd that holds the .pt file
//   download  model layer repo file [quantization]   put's
//   unmount               {"pid": pid}; the daemon has begun to stop when it answers
//
// What `layer` answers with is a descriptor (SCM_RIGHTS, read-only) of the cached file. The cache
// keeps the object for as long as the client keeps this connection.
//
// Access: the socket is 0600 in a directory 0700, and the daemon asks the kernel for the peer's
// uid: the daemon's own user and root may use it, every other is refused.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "tools/common/environment.h"

namespace nexus::tools {

using Json = nlohmann::ordered_json;

inline constexpr size_t kRequestBytesMax = 64 << 10;
inline constexpr size_t kAnswerBytesMax = 64 << 20;

// Lines without the newline.
std::string encode_request(const Json& request);
Result<Json> decode_request(std::string_view line);  // an object with a string "command"
std::string encode_answer(const Result<Json>& answer);
Result<Json> decode_answer(std::string_view line);  // "result", or the error that the daemon sent

bool peer_allowed(uid_t peer, uid_t owner);

// "<XXH3-64 of the mountpoint as 16 hex digits>.sock". The mountpoint is canonical_mountpoint()'s.
std::string socket_name(const std::string& mountpoint);
// Where this user's daemons keep their sockets: /run/nexusfs for root, else
// $XDG_RUNTIME_DIR/nexusfs; without that variable /run/user/<uid>/nexusfs, or /tmp/nexusfs-<uid>
// where there is none.
std::string runtime_directory(uid_t uid, const Environment& environment);
// The same, made if need be (0700); refused when another user owns it or may write to it.
Result<std::string> make_runtime_directory(uid_t uid, const Environment& environment);
// Every place where a socket may be that this user can talk to, his own first; root looks at all
// users'.
std::vector<std::string> socket_directories(uid_t uid, const Environment& environment);
// Every *.sock in those; whether anybody listens is not known.
std::vector<std::string> find_sockets(const std::vector<std::string>& directories);

}  // namespace nexus::tools
