// A line on a terminal that says how far a measurement is and how long it still takes.
#pragma once

#include <chrono>
#include <string>

namespace nexus::tune {

// "read   34/220 [====      ] 1 min 3 s left"
std::string progress_line(const std::string& what, int done, int total,
                          std::chrono::duration<double> so_far);

class ProgressBar {
 public:
  // Silent where standard error is no terminal.
  explicit ProgressBar(std::string what);
  ~ProgressBar();  // wipes the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void show(int done, int total);

 private:
  const std::string what_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace nexus::tune
