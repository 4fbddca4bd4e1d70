// cpp-httplib, the tests' own server, is a Debian library that ThreadSanitizer did not instrument: it sees
// its memory accesses but not its locks. Nothing of ours is suppressed.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libcpp-httplib\nrace:httplib::\n";
}
