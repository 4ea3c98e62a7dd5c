#pragma once

#include <string_view>
#include <vector>

#include "instruction_set.hpp"
#include "kernels/geometry.hpp"

namespace distreal {

// The most floating-point operations in a second that one core was seen to do within `seconds`: the fastest of bursts
// of about a millisecond.
double measure_peak(InstructionSet set, double seconds);

enum class Direction { forward, backward_data, backward_weights };

// The direction of this name; throws std::invalid_argument when there is none.
Direction direction_named(std::string_view name);

// A convolution of which the first `kept_in` inputs and the first `kept_out` outputs survive.
struct ConvolutionProblem {
    int images;
    int in_channels;
    int out_channels;
    int kept_in;
    int kept_out;
    Plane in;
    Window window;
    int groups;

    bool depthwise() const { return groups == in_channels && groups > 1; }
};

// Throws std::invalid_argument that says what is wrong with a problem.
void check_problem(const ConvolutionProblem& problem);

// Seconds of each of `repeats` runs after one that is not counted, on buffers that are reused, as in a training step:
// weights are packed before a forward or backward-data pass, gradients are summed and applied after backward-weights.
// With one thread they are that thread's own processor time, else the time that passed.
std::vector<double> time_convolution(const ConvolutionProblem& problem, Direction direction, int repeats, int threads,
                                     InstructionSet set);

}  // namespace distreal
