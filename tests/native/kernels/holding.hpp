#pragma once
// Runs one case with an instruction set's kernels and with the plain ones in double precision, and compares.

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "values.hpp"

namespace distreal::held {

struct Output {
    std::string name;
    Values values;
};

// What one run of a task made, and the bits of everything that it may have written.
struct Outcome {
    std::vector<Output> outputs;
    std::vector<unsigned char> bits;

    template <class Real>
    void add(const std::string& name, const Placed<Real>& placed, Idle idle) {
        outputs.push_back({name, placed.read(name, idle)});
        placed.append_bits(bits);
    }

    // An array that is `groups` times `rows` times `columns` numbers.
    template <class Real>
    void add(const std::string& name, const Fenced<Real>& array, int groups, int rows, int columns) {
        if (!array.surroundings_are_untouched()) {
            throw Failure{name + ": something outside the array was written"};
        }
        Values values(groups, rows, columns);
        values.data = array.read();
        outputs.push_back({name, values});
        array.append_bits(bits);
    }
};

// Adds up the results of parts, because where they are cut is the kernel's own choice.
inline void sum_parts(Output& output) {
    Values sums(1, output.values.pixels, output.values.channels);
    for (std::size_t i = 0; i < output.values.data.size(); ++i) {
        sums.data[i % sums.data.size()] += output.values.data[i];
    }
    output = {"sum of " + output.name, sums};
}

// Adds up what was summed in the bands of the same images, because a kernel may cut bands by pixels or by classes.
inline void sum_bands(Output& output, int bands) {
    const Values& of_units = output.values;
    Values sums(of_units.images / bands, of_units.pixels, of_units.channels);
    for (int unit = 0; unit < of_units.images; ++unit) {
        for (int which = 0; which < of_units.pixels; ++which) {
            for (int channel = 0; channel < of_units.channels; ++channel) {
                sums.at(unit / bands, which, channel) += of_units.at(unit, which, channel);
            }
        }
    }
    output.values = sums;
}

// In any order, because threads may take units in any order.
template <class Run>
void run_units(Random& order, int units, const Run& run) {
    for (const int unit : order.shuffled(units)) {
        run(unit);
    }
}

// How far a result may lie from the expected one: a factor of float's rounding for each unit of a magnitude, which is
// what the result would be if nothing cancelled. 0: not at all.
inline double rounding(double terms) { return 0x1p-24 * (4 + 2 * std::sqrt(terms)); }

inline void compare(const Output& got, const Output& expected, const Output& magnitude, double factor) {
    const Values& values = expected.values;
    for (int image = 0; image < values.images; ++image) {
        for (int pixel = 0; pixel < values.pixels; ++pixel) {
            for (int channel = 0; channel < values.channels; ++channel) {
                const double one = got.values.at(image, pixel, channel);
                const double other = values.at(image, pixel, channel);
                const double allowed = factor * magnitude.values.at(image, pixel, channel);
                // Where nothing was to be written, both hold the pattern.
                const bool same = one == other || (std::isnan(one) && std::isnan(other));
                if (!same && !(std::abs(one - other) <= allowed)) {
                    std::ostringstream message;
                    message.precision(9);
                    message << expected.name << "[" << image << "][" << pixel << "][" << channel << "] of ["
                            << values.images << "][" << values.pixels << "][" << values.channels << "] is " << one
                            << " instead of " << other << ", may differ by " << allowed;
                    throw Failure{message.str()};
                }
            }
        }
    }
}

// Case has run<Real>(kernels, order) -> Outcome, magnitudes() -> Case, and factor(name of an output).
template <class Case>
void hold(const Kernels<float>& kernels, const Case& one, Random& random) {
    const Outcome got = one.template run<float>(kernels, random);
    if (one.template run<float>(kernels, random).bits != got.bits) {
        throw Failure{"a second run in another order of units made other bits"};
    }
    const Outcome expected = one.template run<double>(plain_kernels<double>(), random);
    const Outcome magnitudes = one.magnitudes().template run<double>(plain_kernels<double>(), random);
    for (std::size_t i = 0; i < expected.outputs.size(); ++i) {
        compare(got.outputs[i], expected.outputs[i], magnitudes.outputs[i], one.factor(expected.outputs[i].name));
    }
}

}  // namespace distreal::held
