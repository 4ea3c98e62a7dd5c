#include "bind_bench.hpp"

#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench.hpp"
#include "cpu_features.hpp"
#include "instruction_set.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace distreal {
namespace {

// The one that is named; without a name the one that engines use.
InstructionSet resolve(const std::string& name) {
    const char* variable = std::getenv(instruction_set_variable);
    return choose_instruction_set(cpu_features(), name.empty() && variable != nullptr ? variable : name);
}

double measure_peak_of(const std::string& instruction_set, double seconds) {
    if (!(seconds > 0.0 && seconds <= 60.0)) {
        throw std::invalid_argument("the seconds are more than 0 and at most 60");
    }
    const InstructionSet set = resolve(instruction_set);
    const py::gil_scoped_release released;
    return measure_peak(set, seconds);
}

using Pair = std::array<int, 2>;

std::vector<double> time_convolution_of(const std::string& direction, int n, int in_channels, int out_channels,
                                        int kept_in, int kept_out, int height, int width, const Pair& kernel,
                                        const Pair& stride, const Pair& padding, const Pair& dilation, int groups,
                                        int repeats, int threads, const std::string& instruction_set) {
    const ConvolutionProblem problem{.images = n,
                                     .in_channels = in_channels,
                                     .out_channels = out_channels,
                                     .kept_in = kept_in,
                                     .kept_out = kept_out,
                                     .in = {height, width},
                                     .window = {kernel, stride, padding, dilation},
                                     .groups = groups};
    const Direction which = direction_named(direction);
    const InstructionSet set = resolve(instruction_set);
    const py::gil_scoped_release released;
    return time_convolution(problem, which, repeats, threads, set);
}

}  // namespace

void bind_bench(py::module_& module) {
    module.def("measure_peak", &measure_peak_of, "instruction_set"_a, "seconds"_a,
               "Return the most floating-point operations in a second that this core was seen to do with multiply-adds "
               "of an instruction set ('': the one that engines use).");
    module.def("time_convolution", &time_convolution_of, "direction"_a, "n"_a, "in_channels"_a, "out_channels"_a,
               "kept_in"_a, "kept_out"_a, "height"_a, "width"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
               "groups"_a, "repeats"_a, "threads"_a = 1, "instruction_set"_a = "",
               "Return the seconds that each repeat of one direction of a convolution took: 'forward', 'backward_data' "
               "or 'backward_weights'. Its first channels survive.");
}

}  // namespace distreal
