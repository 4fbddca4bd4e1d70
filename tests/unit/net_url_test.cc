#include <gtest/gtest.h>

#include "backend/net/redact.h"
#include "backend/net/url.h"

namespace nexus {
namespace {

TEST(RedactUrl, DropsQueriesAndCredentials) {
  EXPECT_EQ(redact_url("https://h.example/a/b?X-Sig=secret&y=1"), "https://h.example/a/b?...");
  EXPECT_EQ(redact_url("https://user:p@ss@h:80/a@b"), "https://h:80/a@b");
  EXPECT_EQ(redact_url("http://h/a#frag"), "http://h/a");
  EXPECT_EQ(redact_url("http://u:p@h?q=secret"), "http://h?...");
  EXPECT_EQ(redact_url("http://127.0.0.1:8000"), "http://127.0.0.1:8000");
  EXPECT_EQ(redact_url("user:pass@host/x"), "host/x");
  EXPECT_EQ(redact_url(""), "");
}

TEST(Url, OriginIsSchemeHostAndPort) {
  EXPECT_EQ(url_origin("https://Hub.Example/a"), "https://hub.example:443");
  EXPECT_EQ(url_origin("http://h:81"), "http://h:81");
  EXPECT_EQ(url_origin("http://[::1]:5/"), "http://[::1]:5");
  EXPECT_EQ(url_origin("https://h@evil.example/"), "https://evil.example:443");
  EXPECT_EQ(url_origin("ftp://h/"), "");
}

TEST(Url, ReferencesAreResolvedAndForeignSchemesRefused) {
  EXPECT_EQ(*join_url("http://h/a/b?q", "/c"), "http://h/c");
  EXPECT_EQ(*join_url("http://h/a/b", "c#f"), "http://h/a/c");
  EXPECT_EQ(*join_url("http://h/a", "https://cdn/x?sig=1"), "https://cdn/x?sig=1");
  EXPECT_EQ(*join_url("http://h/a", "//cdn/x"), "http://cdn/x");
  EXPECT_EQ(*join_url("http://h/a", "https://u:p@cdn/x"), "https://cdn/x");
  for (const char* bad :
       {"", "file:///etc/passwd", "javascript:alert(1)", "ftp://h/x", "http://"}) {
    EXPECT_FALSE(join_url("http://h/a", bad)) << bad;
  }
}

TEST(Url, PercentEncodingKeepsUnreservedCharacters) {
  EXPECT_EQ(percent_encode("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(percent_encode("a b/\xC3\xA9?#%.~_-", true), "a%20b/%C3%A9%3F%23%25.~_-");
}

}  // namespace
}  // namespace nexus
