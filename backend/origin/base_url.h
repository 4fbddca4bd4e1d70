// Pre-split layers behind HTTP: base_url/layer_0.pt, layer_1.pt, ... The count comes from a listing
// at base_url/ where there is one (an index page that names layer_N.pt files), else from probing by
// HEAD (doubling, then bisecting); sizes and ETags by HEAD, several at a time. non_layer.pt and
// config.json are taken in when they are there.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "backend/base/executor.h"
#include "backend/net/http_client.h"
#include "backend/origin/origin.h"

namespace nexus {

// `repo` and `revision` of load() are ignored but for messages. A file whose ETag changed since
// load() fails with kStale. `retry_base` is the first wait between tries; tests use less.
// `max_connections` as of HubOptions. `http`
// and `timers` outlive the origin.
std::shared_ptr<Origin> make_base_url_origin(
    std::string base_url, bool offline, int retry_max, HttpClient& http, Executor& timers,
    std::chrono::milliseconds retry_base = std::chrono::milliseconds(1000),
    int max_connections = 0);

}  // namespace nexus
