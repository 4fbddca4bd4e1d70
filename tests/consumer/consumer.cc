// Does with libnexuscache what its arguments say, one call after the other, and prints a line for
// each:
//   consumer CACHE_DIR ENDPOINT COMMAND...
// Ends with 1 and "error: CODE: text" at the first call that fails.
#include <nexus/cache.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace nc = nexus::cache;

namespace {

[[noreturn]] void give_up(const nc::Error& error) {
  std::cout << "\nerror: " << static_cast<int>(error.code) << ": " << error.message << std::endl;
  std::exit(1);
}

template <typename T>
T value(nc::Result<T> result) {
  if (!result) give_up(result.error());
  return std::move(*result);
}

nc::Tensor tensor(std::string name, std::string dtype, std::vector<std::uint64_t> shape,
                  const std::string& bytes) {
  nc::Tensor made;
  made.name = std::move(name);
  made.dtype = std::move(dtype);
  made.shape = std::move(shape);
  made.data = bytes.data();
  made.bytes = bytes.size();
  return made;
}

// `megabytes` of a byte that follows from the fill, and a scalar.
void put(nc::LayerCache& cache, const std::string& model, int layer, int megabytes, char fill,
         const std::string& mode) {
  const std::string weight(static_cast<std::size_t>(megabytes) << 20, fill);
  const std::string scalar(8, fill);
  std::cout << "put "
            << value(cache.cache_layer(model, layer,
                                       {tensor("w", "F32", {weight.size() / 1024, 256}, weight),
                                        tensor("steps", "I64", {}, scalar)},
                                       mode))
            << std::endl;
}

// Every thread sees the same bytes of every layer.
void many(nc::LayerCache& cache, const std::string& model, int layers) {
  std::atomic<int> wrong{0};
  std::vector<nc::LayerPtr> first(static_cast<std::size_t>(layers));
  for (int n = 0; n < layers; ++n)
    first[static_cast<std::size_t>(n)] = value(cache.get_layer(model, n));
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < layers; ++i) {
        const int n = (i + t) % layers;
        auto layer = cache.get_layer(model, n);
        const nc::LayerPtr& same = first[static_cast<std::size_t>(n)];
        if (!layer || (*layer)->size() != same->size() ||
            std::memcmp((*layer)->data(), same->data(), same->size()) != 0) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::cout << "many " << wrong << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  std::size_t next = 2;
  const auto word = [&] { return next < words.size() ? words[next++] : std::string(); };
  const auto number = [&] { return std::atoi(word().c_str()); };
  nc::Options options;
  options.cache_dir = words.at(0);
  options.endpoint = words.at(1);
  options.timeout_s = 120;
  const nc::LayerCachePtr cache = value(nc::get_layer_cache(options));
  if (value(nc::get_layer_cache(options)) != cache) give_up({nc::ErrorCode::invalid, "two caches"});
  std::vector<nc::LayerPtr> held;
  while (next < words.size()) {
    const std::string command = word();
    if (command == "get" || command == "get-mode") {  // MODEL LAYER [MODE] FILE
      const std::string model = word();
      const int layer = number();
      const std::string mode = command == "get" ? "none" : word();
      const nc::LayerPtr got = value(cache->get_layer(model, layer, mode));
      std::ofstream(word(), std::ios::binary)
          .write(static_cast<const char*>(got->data()), static_cast<std::streamsize>(got->size()));
      std::size_t bytes = 0;
      for (const nc::Tensor& one : got->tensors()) {
        bytes += one.bytes;
        if (got->find(one.name) != &one) give_up({nc::ErrorCode::invalid, one.name});
      }
      std::cout << "get " << got->tensors().size() << " " << bytes << std::endl;
    } else if (command == "hold") {  // MODEL LAYER: until the end
      const std::string model = word();
      held.push_back(value(cache->get_layer(model, number())));
      std::cout << "hold" << std::endl;
    } else if (command == "check-held") {
      for (const nc::LayerPtr& layer : held) {
        volatile unsigned char sum = 0;
        const auto* bytes = static_cast<const unsigned char*>(layer->data());
        for (std::size_t i = 0; i < layer->size(); ++i)
          sum = static_cast<unsigned char>(sum + bytes[i]);
      }
      std::cout << "check-held" << std::endl;
    } else if (command == "put") {  // MODEL LAYER MEGABYTES LETTER MODE
      const std::string model = word();
      const int layer = number(), megabytes = number();
      const char fill = word().at(0);
      put(*cache, model, layer, megabytes, fill, word());
    } else if (command == "copy") {  // FROM LAYER TO LAYER
      const std::string from = word();
      const nc::LayerPtr layer = value(cache->get_layer(from, number()));
      const std::string to = word();
      std::cout << "copy " << value(cache->cache_layer(to, number(), *layer)) << std::endl;
    } else if (command == "download") {  // MODEL LAYER REPO FILE
      const std::string model = word();
      const int layer = number();
      const std::string repo = word();
      std::cout << "download " << value(cache->download_and_cache(model, layer, repo, word()))
                << std::endl;
    } else if (command == "many") {  // MODEL LAYERS
      const std::string model = word();
      many(*cache, model, number());
    } else if (command == "device") {  // MODEL
      value(cache->get_layer(word(), 0, "none", "cuda:0"));
    } else if (command == "invalidate") {  // MODEL LAYER
      const std::string model = word();
      std::cout << "invalidate " << value(cache->invalidate_cache(model, number())).objects
                << std::endl;
    } else if (command == "clear") {
      value(cache->clear_cache());
      std::cout << "clear" << std::endl;
    } else if (command == "verify") {
      std::cout << "verify " << value(cache->verify_cache_integrity()).size() << std::endl;
    } else if (command == "optimize") {
      std::cout << "optimize " << value(cache->optimize_cache()).size() << std::endl;
    } else if (command == "stats") {
      std::cout << value(cache->get_stats()) << std::endl;
    } else if (command == "print") {
      value(cache->print_stats());
    } else if (command == "where") {
      std::cout << (cache->in_process() ? "in-process" : "daemon") << std::endl;
    } else if (command == "wait") {
      std::string line;
      std::getline(std::cin, line);
    } else {
      give_up({nc::ErrorCode::invalid, command});
    }
  }
}
