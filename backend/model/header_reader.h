// Reading what is needed to know a weight file's tensors, from the catalog or in as few requests as
// the format allows.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/object.h"
#include "backend/model/weights.h"
#include "backend/store/store.h"

namespace nexus {

// Bytes of headers that one model may still read. Shared by its readers.
using HeaderBudget = std::atomic<int64_t>;

struct HeaderOutcome {
  WeightHeader header;
  std::vector<HeaderDigest> digests;  // of every range that was parsed
  std::string note;        // why the file is a plain file (a legacy pickle); no error then
  bool transient = false;  // the error may pass: worth another try later
};

struct HeaderRequest {
  std::shared_ptr<const ModelSource> source;
  uint32_t file = 0;
  WeightKind kind = WeightKind::kSafetensors;
  std::shared_ptr<HeaderBudget> budget;
  std::function<void(HeaderOutcome)> done;  // on the pool
};

// safetensors: bytes 0..100000 (most headers are smaller), then the rest. torch: the zip's tail,
// its directory, data.pkl. Parsing runs on `pool`, which with `store` outlives the request.
void read_weight_header(HeaderRequest request, Store& store, ThreadPool& pool);

// A whole small file (an index.json), at most `max_bytes`.
void read_small_file(std::shared_ptr<const ModelSource> source, uint32_t file, uint64_t max_bytes,
                     Store& store, ThreadPool& pool, std::function<void(Result<std::string>)> done);

}  // namespace nexus
