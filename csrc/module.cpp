// distreal_edge._native: the table of contents. Each concept registers itself from a file of its own.

#include <pybind11/pybind11.h>

#include "bind_bench.hpp"
#include "bind_cpu.hpp"
#include "bind_engine.hpp"

PYBIND11_MODULE(_native, module) {
    module.doc() = "The compiled part of distreal-edge.";
    module.def("version", [] { return DISTREAL_EDGE_VERSION; }, "Return the version this module was compiled as.");

    distreal::bind_cpu(module);     // cpu_features, instruction_sets, instruction_set
    distreal::bind_engine(module);  // Operation, Plan, Engine, PlainEngine64
    distreal::bind_bench(module);   // measure_peak, time_convolution
}
