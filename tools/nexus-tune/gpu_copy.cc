#include "tools/nexus-tune/gpu_copy.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <type_traits>

namespace nexus::tune {

namespace {

constexpr unsigned kRingDepths[] = {1, 2, 3, 4, 8};
constexpr uint64_t kChunks[] = {1 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20};
constexpr double kSlack = 0.03;
constexpr unsigned kNonBlocking = 1;    // CU_STREAM_NON_BLOCKING
constexpr unsigned kDisableTiming = 2;  // CU_EVENT_DISABLE_TIMING

std::string message(const CudaDriver& driver, const char* what, int error) {
  const char* text = nullptr;
  if (driver.error_string(error, &text) != 0 || text == nullptr) text = "unknown error";
  return std::string(what) + ": " + text + " (" + std::to_string(error) + ")";
}

// One device, its memory for a chunk of each slot, and a ring of pinned chunks.
class Ring {
 public:
  explicit Ring(const CudaDriver& driver) : driver_(driver) {}
  ~Ring() {
    for (Slot& slot : slots_) {
      if (slot.event) driver_.event_destroy(slot.event);
      if (slot.host) driver_.host_free(slot.host);
      if (slot.device) driver_.free(slot.device);
    }
    if (stream_) driver_.stream_destroy(stream_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  Result<void> make(unsigned depth, uint64_t chunk) {
    chunk_ = chunk;
    if (auto ok = check("cuStreamCreate", driver_.stream_create(&stream_, kNonBlocking)); !ok) {
      return ok;
    }
    for (unsigned i = 0; i < depth; ++i) {
      Slot& slot = slots_.emplace_back();
      if (auto ok = check("cuMemHostAlloc", driver_.host_alloc(&slot.host, chunk, 0)); !ok) {
        return ok;
      }
      if (auto ok = check("cuMemAlloc", driver_.alloc(&slot.device, chunk)); !ok) return ok;
      if (auto ok = check("cuEventCreate", driver_.event_create(&slot.event, kDisableTiming));
          !ok) {
        return ok;
      }
    }
    return {};
  }

  // A slot is used again when its copy has ended, as a loader would that refills it.
  Result<double> copy(uint64_t bytes) {
    const auto start = std::chrono::steady_clock::now();
    uint64_t done = 0;
    for (size_t turn = 0; done < bytes; ++turn, done += chunk_) {
      Slot& slot = slots_[turn % slots_.size()];
      if (turn >= slots_.size()) {
        if (auto ok = check("cuEventSynchronize", driver_.event_wait(slot.event)); !ok) {
          return tl::unexpected(ok.error());
        }
      }
      auto sent =
          check("cuMemcpyHtoDAsync", driver_.copy_async(slot.device, slot.host, chunk_, stream_));
      if (sent) sent = check("cuEventRecord", driver_.event_record(slot.event, stream_));
      if (!sent) return tl::unexpected(sent.error());
    }
    for (Slot& slot : slots_) {
      if (auto ok = check("cuEventSynchronize", driver_.event_wait(slot.event)); !ok) {
        return tl::unexpected(ok.error());
      }
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return static_cast<double>(done) / 1e9 / std::max(took.count(), 1e-9);
  }

 private:
  struct Slot {
    void* host = nullptr;
    unsigned long long device = 0;
    void* event = nullptr;
  };
  Result<void> check(const char* what, int error) const {
    if (error == 0) return {};
    return fail(Code::kLimit, message(driver_, what, error));
  }

  const CudaDriver& driver_;
  uint64_t chunk_ = 0;
  void* stream_ = nullptr;
  std::vector<Slot> slots_;
};

Result<int> first_device(const CudaDriver& driver) {
  if (const int error = driver.init(0); error != 0) {
    return fail(Code::kUnsupported, message(driver, "cuInit", error));
  }
  int count = 0;
  if (const int error = driver.device_count(&count); error != 0) {
    return fail(Code::kUnsupported, message(driver, "cuDeviceGetCount", error));
  }
  if (count == 0) return fail(Code::kUnsupported, "the CUDA driver sees no device");
  int device = 0;
  if (const int error = driver.device_get(&device, 0); error != 0) {
    return fail(Code::kUnsupported, message(driver, "cuDeviceGet", error));
  }
  return device;
}

int cheapest_of_the_fast(const std::vector<CopyPoint>& points) {
  double fastest = 0;
  for (const CopyPoint& point : points) fastest = std::max(fastest, point.gbps);
  int best = -1;
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].gbps < fastest * (1 - kSlack)) continue;
    const auto pinned = [&](size_t at) { return points[at].ring_depth * points[at].chunk_bytes; };
    if (best < 0 || pinned(i) < pinned(static_cast<size_t>(best))) best = static_cast<int>(i);
  }
  return best;
}

}  // namespace

Result<CudaDriver> load_cuda_driver() {
  // Kept until the process ends: a driver does not like to be unloaded.
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = ::dlerror();
    return fail(Code::kUnsupported, why ? why : "libcuda.so.1 cannot be loaded");
  }
  CudaDriver driver;
  std::string missing;
  const auto take = [&](auto& into, const char* name) {
    into = reinterpret_cast<std::remove_reference_t<decltype(into)>>(::dlsym(library, name));
    if (into == nullptr) missing = name;
  };
  take(driver.init, "cuInit");
  take(driver.device_count, "cuDeviceGetCount");
  take(driver.device_get, "cuDeviceGet");
  take(driver.device_name, "cuDeviceGetName");
  take(driver.context_retain, "cuDevicePrimaryCtxRetain");
  take(driver.context_release, "cuDevicePrimaryCtxRelease_v2");
  take(driver.context_set, "cuCtxSetCurrent");
  take(driver.alloc, "cuMemAlloc_v2");
  take(driver.free, "cuMemFree_v2");
  take(driver.host_alloc, "cuMemHostAlloc");
  take(driver.host_free, "cuMemFreeHost");
  take(driver.stream_create, "cuStreamCreate");
  take(driver.stream_destroy, "cuStreamDestroy_v2");
  take(driver.copy_async, "cuMemcpyHtoDAsync_v2");
  take(driver.event_create, "cuEventCreate");
  take(driver.event_destroy, "cuEventDestroy_v2");
  take(driver.event_record, "cuEventRecord");
  take(driver.event_wait, "cuEventSynchronize");
  take(driver.error_string, "cuGetErrorString");
  if (!missing.empty()) return fail(Code::kUnsupported, "libcuda.so.1 has no " + missing);
  return driver;
}

std::string why_no_gpu() {
  auto driver = load_cuda_driver();
  if (!driver) return driver.error().what;
  auto device = first_device(*driver);
  return device ? "" : device.error().what;
}

Result<CopyResult> measure_copies(const CudaDriver& driver, uint64_t bytes,
                                  const std::atomic<bool>& stop) {
  auto device = first_device(driver);
  if (!device) return tl::unexpected(device.error());
  CopyResult result;
  char name[128] = {};
  if (driver.device_name(name, sizeof name - 1, *device) == 0) result.device = name;
  void* context = nullptr;
  if (const int error = driver.context_retain(&context, *device); error != 0) {
    return fail(Code::kUnsupported, message(driver, "cuDevicePrimaryCtxRetain", error));
  }
  Result<void> outcome;
  if (const int error = driver.context_set(context); error != 0) {
    outcome = fail(Code::kUnsupported, message(driver, "cuCtxSetCurrent", error));
  }
  for (const uint64_t chunk : kChunks) {
    for (const unsigned depth : kRingDepths) {
      if (stop || !outcome) break;
      Ring ring(driver);
      outcome = ring.make(depth, chunk);
      if (!outcome) break;
      // The first round wakes the link from its power saving.
      auto gbps = ring.copy(depth * chunk);
      if (gbps) gbps = ring.copy(bytes);
      if (gbps) {
        result.points.push_back({depth, chunk, *gbps});
      } else {
        outcome = tl::unexpected(gbps.error());
      }
    }
  }
  driver.context_set(nullptr);
  driver.context_release(*device);
  if (!outcome && result.points.empty()) return tl::unexpected(outcome.error());
  result.best = cheapest_of_the_fast(result.points);
  return result;
}

nlohmann::json copy_json(const CopyResult& result) {
  nlohmann::json points = nlohmann::json::array();
  for (const CopyPoint& point : result.points) {
    points.push_back({{"ring_depth", point.ring_depth},
                      {"chunk_bytes", point.chunk_bytes},
                      {"throughput_gbps", point.gbps}});
  }
  nlohmann::json json = {{"device", result.device}, {"best", nullptr}};
  if (result.best >= 0) json["best"] = points[static_cast<size_t>(result.best)];
  json["points"] = std::move(points);
  return json;
}

}  // namespace nexus::tune
