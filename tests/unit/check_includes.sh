#!/bin/sh
# Dependencies point tools -> fs -> prefetch -> backend; gpu/ depends on none of them.
set -eu
cd "$1"
bad=$(
  { grep -rnE '#include *[<"](prefetch|fs|tools|gpu)/' backend
    grep -rnE '#include *[<"](fs|tools|gpu)/' prefetch
    grep -rnE '#include *[<"](tools|gpu)/' fs
    grep -rnE '#include *[<"](gpu)/' tools
    grep -rnE '#include *[<"](backend|prefetch|fs|tools)/' gpu
    # errno leaves through fs/ and tools/ alone; below, a failed system call becomes an Error.
    grep -rnE 'fuse_reply_err|#include *<fuse' backend prefetch
  } || true
)
if [ -n "$bad" ]; then
  printf 'includes against the direction:\n%s\n' "$bad" >&2
  exit 1
fi
