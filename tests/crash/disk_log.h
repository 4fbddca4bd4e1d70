// A disk that forgets: what this process does to the files below a directory is written down,
// operation by operation, and the directory can be made anew as a power cut after any of them may
// have left it. Bytes survive for certain if their file was synced after they were written, names
// if their directory was synced after they were made; of the rest anything may survive, bytes in
// blocks of 4 KiB.
//
// How: the program defines the C library's calls that change files (open, pwrite, rename, ...), and
// they come before the library's own, also for libsqlite3. The file system below must be one that
// keeps inode numbers of open files unique, as all do. Calls are made one at a time while a log
// lives. Hard links, and renames from one directory to another, are not known; same_as() says
// whether anything else went by unseen.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace nexus::crash_test {

using Rng = std::mt19937_64;

// What a power cut does to what was not synced.
struct Cut {
  double bytes_kept = 0;  // of the unsynced blocks; a block holds every write up to some one
  double names_kept = 0;  // of the unsynced makings, renames and removals, each for itself
  // Instead of names_kept, as journaling file systems have it: all names up to some moment survive,
  // and none after.
  bool names_in_order = false;
  bool syncs_lie = false;  // the disk says that it has synced, and has not
};
Cut random_cut(Rng& rng);

class DiskLog {
 public:
  // What lies in `root` counts as synced. One log at a time; `root` is an absolute path without a
  // slash at its end.
  explicit DiskLog(std::string root);
  ~DiskLog();
  DiskLog(const DiskLog&) = delete;
  DiskLog& operator=(const DiskLog&) = delete;

  // What is done from now on is not written down.
  void stop();
  // How many operations were seen so far.
  size_t now() const;
  // Makes `target`, an empty directory, what is there when the power fails after the first `at`
  // operations.
  void rebuild(size_t at, const Cut& cut, Rng& rng, const std::string& target) const;
  // "" if all that was done gives what `root` holds now; else the first difference. SQLite's index
  // of its journal
  // (-shm), which is memory and not storage, does not count.
  std::string difference() const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace nexus::crash_test
