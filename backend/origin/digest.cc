#include "backend/origin/digest.h"

#include <openssl/evp.h>

#include <memory>

namespace nexus {

std::string listing_digest(const std::vector<OriginFile>& files) {
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  unsigned char digest[EVP_MAX_MD_SIZE] = {};
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  for (const auto& file : files) {
    // The final NUL of each part ends it: no two listings give the same bytes.
    for (const std::string& part : {file.path, std::to_string(file.size), file.etag}) {
      EVP_DigestUpdate(context.get(), part.c_str(), part.size() + 1);
    }
  }
  EVP_DigestFinal_ex(context.get(), digest, nullptr);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (int i = 0; i < 20; ++i) {
    text += kHex[digest[i] >> 4];
    text += kHex[digest[i] & 15];
  }
  return text;
}

}  // namespace nexus
