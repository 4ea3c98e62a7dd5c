#include <cmath>
#include <sstream>

#include "holding.hpp"
#include "tests.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

struct PoolCase {
    Sliding sliding;
    bool maximum;
    bool count_include_pad;
    bool backward;
    Values in;
    Values gradient;
    Values in_gradient;  // before
    bool accumulate;
    Cutting cutting;
    Placement in_placement;
    Placement out_placement;
    Placement in_gradient_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Gather geometry = forward_gather(sliding.window, sliding.in, sliding.out);
        const Placed<Real> placed_in(in, kernels.lanes, in_placement, Idle::finite);
        const Placed<Real> out(gradient, kernels.lanes, out_placement, Idle::zero,
                               backward ? Content::given : Content::nothing);
        const Placed<Real> placed_in_gradient(in_gradient, kernels.lanes, in_gradient_placement, Idle::zero,
                                              accumulate ? Content::given : Content::nothing);
        const PoolTask<Real> task{
            .gather = &geometry,
            .window = &sliding.window,
            .maximum = maximum,
            .count_include_pad = count_include_pad,
            .in = placed_in.readable(),
            .out = backward ? View<Real>{} : out.view(),
            .gradient = backward ? out.readable() : View<const Real>{},
            .in_gradient = backward ? placed_in_gradient.view() : View<Real>{},
            .accumulate = accumulate,
            .channels = in.channels,
            .cut = cutting.cut(in.images, kernels.lanes),
        };
        run_units(order, task.cut.units(),
                  [&](int unit) { backward ? kernels.pool_backward(task, unit) : kernels.pool_forward(task, unit); });
        Outcome outcome;
        if (backward) {
            outcome.add("in_gradient", placed_in_gradient, Idle::zero);
        } else {
            outcome.add("out", out, Idle::finite);
        }
        return outcome;
    }

    // A maximum keeps its input: which pixels are the greatest must not change.
    PoolCase magnitudes() const {
        PoolCase absolute = *this;
        if (!maximum) {
            make_absolute(absolute.in.data);
        }
        make_absolute(absolute.gradient.data);
        make_absolute(absolute.in_gradient.data);
        return absolute;
    }

    double factor(const std::string& /*output*/) const { return maximum ? 0 : rounding(sliding.window.taps() + 4); }
};

void try_pool(const Kernels<float>& kernels, Random& random, bool backward) {
    PoolCase one{};
    do {
        one.sliding = drawn_sliding(random, true);
        const int images = drawn_images(random, kernels.lanes);
        const int channels = drawn_channels(random);
        one.maximum = random.chance(0.5);
        // Few different numbers, so that windows often hold equal maxima.
        const Grain grain = one.maximum ? Grain::whole : Grain::rounded;
        one.in = drawn(random, images, one.sliding.in.pixels(), channels, grain);
        if (one.maximum && random.chance(0.2)) {  // what is not a number wins
            for (double& value : one.in.data) {
                value = random.chance(0.1) ? std::nan("") : value;
            }
        }
        one.gradient = drawn(random, images, one.sliding.out.pixels(), channels, grain);
        one.in_gradient = drawn(random, images, one.sliding.in.pixels(), channels, grain);
    } while (static_cast<double>(one.gradient.data.size()) * one.sliding.window.taps() > 2e5);
    one.count_include_pad = random.chance(0.5);
    one.backward = backward;
    one.accumulate = backward && random.chance(0.5);
    one.cutting = drawn_cutting(random, one.in.images, kernels.lanes, !backward);
    one.in_placement = drawn_placement(random);
    one.out_placement = drawn_placement(random);
    one.in_gradient_placement = drawn_placement(random);
    std::ostringstream text;
    text << "n" << one.in.images << " c" << one.in.channels << one.sliding << one.cutting
         << (one.maximum ? ", maximum" : ", average") << (one.count_include_pad ? ", count_include_pad" : "")
         << (one.accumulate ? ", accumulate" : "");
    begin_case(text.str());
    hold(kernels, one, random);
}

void try_forward(const Kernels<float>& kernels, Random& random) { try_pool(kernels, random, false); }
void try_backward(const Kernels<float>& kernels, Random& random) { try_pool(kernels, random, true); }

}  // namespace

std::vector<Test> pool_tests() { return {{"pool_forward", try_forward}, {"pool_backward", try_backward}}; }

}  // namespace distreal::held
