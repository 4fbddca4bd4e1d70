// libfuse's low-level header with the version that this code is written for. Builds with 3.14 (no
// passthrough, no mmap of direct-io files) and newer; include nothing else of libfuse.
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
#define NEXUS_FUSE_PASSTHROUGH 1
#else
#define NEXUS_FUSE_PASSTHROUGH 0
#endif
