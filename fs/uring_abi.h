// What crosses the kernel's boundary in FUSE over io_uring (Linux 6.14), as in its
// include/uapi/linux/fuse.h: Debian 12's does not have it yet.
#pragma once

#include <cstdint>

namespace nexus::fs::abi {

struct InHeader {
  uint32_t len;  // of the whole request
  uint32_t opcode;
  uint64_t unique;
  uint64_t nodeid;
  uint32_t uid, gid, pid;
  uint16_t total_extlen, padding;
};
static_assert(sizeof(InHeader) == 40);

struct OutHeader {
  uint32_t len;
  int32_t error;
  uint64_t unique;
};
static_assert(sizeof(OutHeader) == 16);

constexpr uint32_t kInit = 26;
constexpr uint32_t kInterrupt = 36;
constexpr uint64_t kInterruptBit = 1;  // of the unique of an INTERRUPT

struct InitIn {
  uint32_t major, minor, max_readahead, flags, flags2;
};

struct InitOut {
  uint32_t major, minor, max_readahead, flags;
  uint16_t max_background, congestion_threshold;
  uint32_t max_write, time_gran;
  uint16_t max_pages, map_alignment;
  uint32_t flags2;
};
static_assert(sizeof(InitOut) == 36);

constexpr uint32_t kFlagMaxPages = 1u << 22;   // flags
constexpr uint32_t kFlagInitExt = 1u << 30;    // flags: flags2 counts
constexpr uint32_t kFlag2OverUring = 1u << 9;  // flags2

struct InterruptIn {
  uint64_t unique;
};

struct EntryInOut {
  uint64_t flags;
  uint64_t commit_id;
  uint32_t payload_size;
  uint32_t padding;
  uint64_t reserved;
};

// The first buffer of an entry; the second is its payload.
struct RequestHeader {
  unsigned char in_out[128];  // InHeader of a request, OutHeader of its reply
  unsigned char op_in[128];   // the operation's own arguments
  EntryInOut entry;
};
static_assert(sizeof(RequestHeader) == 288);

constexpr uint32_t kRegister = 1;        // cmd_op: takes the first request
constexpr uint32_t kCommitAndFetch = 2;  // cmd_op: gives a reply, takes the next request

// In the command area of a 128-byte SQE.
struct Command {
  uint64_t flags;
  uint64_t commit_id;
  uint16_t queue;
  uint8_t padding[6];
};
static_assert(sizeof(Command) == 24);

}  // namespace nexus::fs::abi
