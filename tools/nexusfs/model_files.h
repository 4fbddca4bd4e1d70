// Which of a model's files are fetched for nobody yet.
#pragma once

#include <vector>

#include "backend/model/model.h"
#include "backend/model/registry.h"
#include "prefetch/background_fill.h"

namespace nexus::tools {

// Every file of the origin's that can be fetched, the nested ones too; views are none. Those whose names may still be
// views are left out while the headers are on their way.
std::vector<ModelNode> origin_files(Model& model);

// For a background fill: the origin's files of models of which something is cached, and what the disk has free. Both
// outlive the hooks.
prefetch::FillHooks fill_hooks(Cache& cache, Registry& registry);

}  // namespace nexus::tools
