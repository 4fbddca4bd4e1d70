// How people name models and layers on nexusctl's command line.
#pragma once

#include <string>
#include <vector>

#include "backend/base/error.h"

namespace nexus::tools {

// "3" -> "layer_3.pt", "non_layer" -> "non_layer.pt"; whatever else is a path in the model.
std::string file_of_layer(const std::string& layer);
// "0-3,7,non_layer" -> layer files in that order. kInvalid says what is wrong.
Result<std::vector<std::string>> files_of_layers(const std::string& layers);
// The one of `known` (repos) that people mean by `model`: itself, or, without its organisation, the
// only one of that name. kInvalid when there are several. What is not known is returned as it is.
Result<std::string> complete_model_name(const std::string& model,
                                        const std::vector<std::string>& known);

}  // namespace nexus::tools
