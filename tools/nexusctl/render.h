// The daemon's answers as text for people. Members that are missing (another version's daemon) show
// as
// "-" or 0; nothing here throws.
#pragma once

#include <string>

#include "tools/common/control_protocol.h"

namespace nexus::tools {

std::string render_status(const Json& status);
std::string render_stats(const Json& stats);
std::string render_objects(const Json& answer);              // of ls
std::string render_dropped(const Json& answer);              // of invalidate and clear
std::string render_verify(const Json& answer, bool origin);  // of verify and optimize
std::string render_migration(const Json& answer);
std::string render_warm(const Json& answer, bool waited);
std::string render_top(const Json& status, const Json& stats, const Json& objects);
// "[######....]  60 %  1.2 GB of 2.0 GB, 3 of 7 files"
std::string render_progress(const Json& progress);
std::string render_plan(const Json& answer);
std::string render_refresh(const std::string& model, const Json& commits);

}  // namespace nexus::tools
