#include "bind_cpu.hpp"

#include <cstdlib>
#include <string>

#include "cpu_features.hpp"
#include "instruction_set.hpp"

namespace py = pybind11;

namespace distreal {
namespace {

py::dict cpu_features_as_dict() {
    py::dict features;
    for (const CpuFeature& feature : cpu_features()) {
        features[py::str(feature.name)] = feature.present;
    }
    return features;
}

py::tuple instruction_set_names() {
    py::list names;
    for (const InstructionSet set : available_instruction_sets(cpu_features())) {
        names.append(py::str(name_of(set)));
    }
    return py::tuple(names);
}

// The environment is read at every call, so that os.environ counts until the moment an engine asks.
std::string chosen_instruction_set() {
    const char* wanted = std::getenv(instruction_set_variable);
    return std::string(name_of(choose_instruction_set(cpu_features(), wanted == nullptr ? "" : wanted)));
}

}  // namespace

void bind_cpu(py::module_& module) {
    module.def("cpu_features", &cpu_features_as_dict,
               "Return which of the features that kernels could use this processor and its kernel offer.");
    module.def("instruction_sets", &instruction_set_names,
               "Return the names of the instruction sets that run here, best first; 'plain' is always the last.");
    module.def("instruction_set", &chosen_instruction_set,
               "Return the instruction set that kernels will use: the best one that runs here, or the one that "
               "DISTREAL_EDGE_INSTRUCTION_SET names. Raise ValueError when that one is unknown or does not run here.");
}

}  // namespace distreal
