#include "backend/cache/digest.h"

#include <openssl/evp.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace nexus {

bool is_git_oid(const std::string& etag) {
  return etag.size() == 40 && etag.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Result<std::string> digest_of(const ObjectFile& file, bool git, const std::function<bool()>& stop) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> owner(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_MD_CTX* const context = owner.get();
  EVP_DigestInit_ex(context, git ? EVP_sha1() : EVP_sha256(), nullptr);
  if (git) {
    const std::string head = "blob " + std::to_string(file.size());
    EVP_DigestUpdate(context, head.c_str(), head.size() + 1);
  }
  std::vector<std::byte> buffer(kChunkBytes);
  Result<void> read;
  for (uint64_t chunk = 0; chunk < file.chunks() && read; ++chunk) {
    if (stop()) return fail(Code::kCancelled, "stopped");
    const auto bytes = std::span(buffer).first(file.chunk_length(chunk));
    read = file.read(chunk * kChunkBytes, bytes);
    if (read) EVP_DigestUpdate(context, bytes.data(), bytes.size());
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_DigestFinal_ex(context, digest, &length);
  if (!read) return tl::unexpected<Error>(read.error());
  static constexpr char kHex[] = "0123456789abcdef";
  std::string hex;
  for (unsigned i = 0; i < length; ++i) {
    hex += kHex[digest[i] >> 4];
    hex += kHex[digest[i] & 15];
  }
  return hex;
}

}  // namespace nexus
