// Copies from pinned memory to a GPU: how deep a ring of how large chunks. Through the CUDA driver,
// loaded when it is there; nothing of CUDA is needed to build or to run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "backend/base/error.h"

namespace nexus::tune {

// The driver's functions that are used (cuda.h; results are CUresult, 0 is success). Tests put
// theirs in.
struct CudaDriver {
  int (*init)(unsigned flags) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device_get)(int* device, int ordinal) = nullptr;
  int (*device_name)(char* name, int length, int device) = nullptr;
  int (*context_retain)(void** context, int device) = nullptr;
  int (*context_release)(int device) = nullptr;
  int (*context_set)(void* context) = nullptr;
  int (*alloc)(unsigned long long* pointer, size_t bytes) = nullptr;
  int (*free)(unsigned long long pointer) = nullptr;
  int (*host_alloc)(void** pointer, size_t bytes, unsigned flags) = nullptr;
  int (*host_free)(void* pointer) = nullptr;
  int (*stream_create)(void** stream, unsigned flags) = nullptr;
  int (*stream_destroy)(void* stream) = nullptr;
  int (*copy_async)(unsigned long long to, const void* from, size_t bytes, void* stream) = nullptr;
  int (*event_create)(void** event, unsigned flags) = nullptr;
  int (*event_destroy)(void* event) = nullptr;
  int (*event_record)(void* event, void* stream) = nullptr;
  int (*event_wait)(void* event) = nullptr;
  int (*error_string)(int error, const char** text) = nullptr;
};

// The installed driver. kUnsupported, with the reason: no libcuda, or one without a function.
Result<CudaDriver> load_cuda_driver();

// "" when there is a device; else why not: no driver, no device. Starts the driver.
std::string why_no_gpu();

struct CopyPoint {
  unsigned ring_depth = 0;  // chunks pinned and on their way at once
  uint64_t chunk_bytes = 0;
  double gbps = 0;
};

struct CopyResult {
  std::string device;
  std::vector<CopyPoint> points;
  int best = -1;  // within 3 % of the fastest, the one that pins least
};

// `bytes` through every ring. kUnsupported without a device, kLimit when it has not the memory.
Result<CopyResult> measure_copies(const CudaDriver& driver, uint64_t bytes,
                                  const std::atomic<bool>& stop);
nlohmann::json copy_json(const CopyResult& result);

}  // namespace nexus::tune
