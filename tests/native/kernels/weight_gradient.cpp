// Convolution, backward-weights.

#include <sstream>

#include "holding.hpp"
#include "tests.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

struct WeightGradientCase {
    Sliding sliding;
    Grain grain;
    Values in;
    Values gradient;
    int parts;
    Placement in_placement;
    Placement gradient_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const TapRuns runs = tap_runs(sliding.window, sliding.in, sliding.out);
        const Placed<Real> placed_in(in, kernels.lanes, in_placement, Idle::finite);
        const Placed<Real> placed_gradient(gradient, kernels.lanes, gradient_placement, Idle::zero);
        const int size = gradient.channels * in.channels * sliding.window.taps();
        const Fenced<Real> result(static_cast<std::size_t>(parts * size));
        const WeightGradientTask<Real> task{
            .window = &sliding.window,
            .runs = &runs,
            .in = placed_in.readable(),
            .gradient = placed_gradient.readable(),
            .in_channels = in.channels,
            .out_channels = gradient.channels,
            .blocks = placed_in.blocks(),
            .parts = parts,
            .result = result.data(),
        };
        Outcome outcome;
        run_units(order, kernels.weight_gradient_units(task), [&](int unit) {
            const Fenced<Real> scratch(kernels.weight_gradient_scratch(task), 64);
            kernels.weight_gradient(task, unit, scratch.data());
            if (!scratch.surroundings_are_untouched()) {
                throw Failure{"something outside the scratch was written"};
            }
        });
        outcome.add("parts of result", result, parts, gradient.channels, in.channels * sliding.window.taps());
        sum_parts(outcome.outputs.back());
        return outcome;
    }

    WeightGradientCase magnitudes() const {
        WeightGradientCase absolute = *this;
        make_absolute(absolute.in.data);
        make_absolute(absolute.gradient.data);
        return absolute;
    }

    double factor(const std::string& /*output*/) const {
        return grain == Grain::whole ? 0 : rounding(gradient.images * gradient.pixels);
    }
};

WeightGradientCase drawn_weight_gradient(Random& random, int lanes) {
    for (;;) {
        WeightGradientCase one{};
        one.sliding = drawn_sliding(random);
        const int images = drawn_images(random, lanes);
        const auto [in_channels, out_channels, most_products] = drawn_channel_pair(random);
        if (static_cast<double>(images) * one.sliding.out.pixels() * in_channels * out_channels *
                one.sliding.window.taps() >
            most_products) {
            continue;
        }
        one.grain = random.pick({Grain::whole, Grain::rounded});
        one.in = drawn(random, images, one.sliding.in.pixels(), in_channels, one.grain);
        one.gradient = drawn(random, images, one.sliding.out.pixels(), out_channels, one.grain);
        one.parts = random.pick({1, 1, 2, 3, random.between(1, 9)});
        one.in_placement = drawn_placement(random);
        one.gradient_placement = drawn_placement(random);
        return one;
    }
}

void try_weight_gradient(const Kernels<float>& kernels, Random& random) {
    const WeightGradientCase one = drawn_weight_gradient(random, kernels.lanes);
    std::ostringstream text;
    text << "n" << one.in.images << " c" << one.in.channels << ">" << one.gradient.channels << one.sliding << ", "
         << one.parts << " parts" << (one.grain == Grain::whole ? ", whole numbers" : "");
    begin_case(text.str());
    hold(kernels, one, random);
}

}  // namespace

std::vector<Test> weight_gradient_tests() { return {{"weight_gradient", try_weight_gradient}}; }

}  // namespace distreal::held
