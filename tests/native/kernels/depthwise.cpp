// Depthwise convolution: forward, backward-data and backward-weights.

#include <optional>
#include <sstream>

#include "holding.hpp"
#include "tests.hpp"
#include "through.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

// Which input each output reads. Survivors may leave any number of outputs to an input, none included.
struct Partners {
    std::vector<std::int32_t> partner{};  // [out_channels]
    std::vector<std::int32_t> first{};    // [in_channels + 1]
};

Partners drawn_partners(Random& random, int most_channels) {
    Partners partners{{}, {0}};
    const int in_channels = random.between(1, most_channels);
    const int multiplier = random.pick({1, 1, 2, 3});
    const bool uneven = random.chance(0.3);
    for (int i = 0; i < in_channels; ++i) {
        const int outputs = uneven ? random.between(0, multiplier) : multiplier;
        partners.partner.insert(partners.partner.end(), static_cast<std::size_t>(outputs), i);
        partners.first.push_back(static_cast<std::int32_t>(partners.partner.size()));
    }
    return partners.partner.empty() ? drawn_partners(random, most_channels) : partners;
}

struct DepthwiseCase {
    Sliding sliding;
    bool backward;
    Partners partners;
    Grain grain;
    Values from;
    Values to;  // before
    std::vector<double> weights;
    bool accumulate;
    std::vector<double> bias;  // empty: none
    bool moments;
    bool live_is_null;
    std::optional<Through> through;
    Cutting cutting;
    Placement from_placement;
    Placement to_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Gather geometry = backward ? backward_gather(sliding.window, sliding.in, sliding.out)
                                         : forward_gather(sliding.window, sliding.in, sliding.out);
        const Idle idle = backward ? Idle::zero : Idle::finite;
        const Placed<Real> placed_from(from, kernels.lanes, from_placement, idle);
        const Placed<Real> placed_to(to, kernels.lanes, to_placement, idle,
                                     accumulate ? Content::given : Content::nothing);
        const Fenced<Real> placed_weights(weights);
        const Fenced<Real> placed_bias(bias);
        const Fenced<Real> live(live_lanes(from.images, kernels.lanes));
        const Cut cut = cutting.cut(from.images, kernels.lanes);
        const Fenced<Real> sums(static_cast<std::size_t>(moments || through ? cut.units() * 2 * to.channels : 0));
        const PlacedThrough<Real> placed_through(through, kernels.lanes, sums.data());
        const DepthwiseTask<Real> task{
            .window = &sliding.window,
            .gather = &geometry,
            .from = placed_from.readable(),
            .to = placed_to.view(),
            .from_channels = from.channels,
            .to_channels = to.channels,
            .partner = backward ? nullptr : partners.partner.data(),
            .first = backward ? partners.first.data() : nullptr,
            .weights = placed_weights.data(),
            .bias = bias.empty() ? nullptr : placed_bias.data(),
            .accumulate = accumulate,
            .cut = cut,
            .moments = moments ? sums.data() : nullptr,
            .live = moments && !live_is_null ? live.data() : nullptr,
            .through = placed_through.task(),
        };
        run_units(order, cut.units(), [&](int unit) {
            backward ? kernels.depthwise_backward(task, unit) : kernels.depthwise_forward(task, unit);
        });
        Outcome outcome;
        outcome.add("to", placed_to, bias.empty() ? idle : Idle::finite);
        outcome.add("sums", sums, sums.size() == 0 ? 0 : cut.units(), 2, to.channels);
        sum_bands(outcome.outputs.back(), cut.bands);
        return outcome;
    }

    DepthwiseCase magnitudes() const {
        DepthwiseCase absolute = *this;
        make_absolute(absolute.weights);
        make_absolute(absolute.from.data);
        make_absolute(absolute.to.data);
        make_absolute(absolute.bias);
        if (through) {
            absolute.through->make_absolute();
        }
        return absolute;
    }

    double factor(const std::string& output) const {
        const double terms = 3 * sliding.window.taps() + 2;
        if (output == "sums") {
            return 2 * rounding(terms + to.images * to.pixels);
        }
        return grain == Grain::whole ? 0 : rounding(terms);
    }
};

DepthwiseCase drawn_depthwise(Random& random, int lanes, bool backward) {
    for (;;) {
        DepthwiseCase one{};
        one.sliding = drawn_sliding(random);
        one.backward = backward;
        one.partners = drawn_partners(random, 23);
        const int images = drawn_images(random, lanes);
        const auto in_channels = static_cast<int>(one.partners.first.size()) - 1;
        const auto out_channels = static_cast<int>(one.partners.partner.size());
        const Plane from = backward ? one.sliding.out : one.sliding.in;
        const Plane to = backward ? one.sliding.in : one.sliding.out;
        const int taps = one.sliding.window.taps();
        if (static_cast<double>(images) * to.pixels() * out_channels * taps > 3e5) {
            continue;
        }
        one.grain = random.pick({Grain::whole, Grain::rounded});
        one.from = drawn(random, images, from.pixels(), backward ? out_channels : in_channels, one.grain);
        one.to = drawn(random, images, to.pixels(), backward ? in_channels : out_channels, one.grain);
        one.weights = random.numbers(out_channels * taps, one.grain);
        one.accumulate = random.chance(0.4);
        if (random.chance(backward ? 0.1 : 0.5)) {
            one.bias = random.numbers(one.to.channels, one.grain);
        }
        one.moments = !backward && random.chance(0.5);
        one.live_is_null = images % lanes == 0 && random.chance(0.5);
        if (backward && one.bias.empty() && random.chance(0.6)) {
            one.through = drawn_through(random, one.to);
        }
        one.cutting = drawn_cutting(random, images, lanes);
        one.from_placement = drawn_placement(random);
        one.to_placement = drawn_placement(random);
        return one;
    }
}

void try_depthwise(const Kernels<float>& kernels, Random& random, bool backward) {
    const DepthwiseCase one = drawn_depthwise(random, kernels.lanes, backward);
    std::ostringstream text;
    text << "n" << one.from.images << " c" << one.from.channels << ">" << one.to.channels << one.sliding << one.cutting
         << (one.grain == Grain::whole ? ", whole numbers" : "") << (one.accumulate ? ", accumulate" : "")
         << (one.bias.empty() ? "" : ", bias") << (one.moments ? ", moments" : "") << (one.through ? ", through" : "");
    begin_case(text.str());
    hold(kernels, one, random);
}

void try_forward(const Kernels<float>& kernels, Random& random) { try_depthwise(kernels, random, false); }
void try_backward(const Kernels<float>& kernels, Random& random) { try_depthwise(kernels, random, true); }

struct DepthwiseWeightCase {
    Sliding sliding;
    Partners partners;
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
        const int taps = sliding.window.taps();
        const Fenced<Real> result(static_cast<std::size_t>(parts * gradient.channels * taps));
        const DepthwiseWeightTask<Real> task{
            .window = &sliding.window,
            .runs = &runs,
            .in = placed_in.readable(),
            .gradient = placed_gradient.readable(),
            .partner = partners.partner.data(),
            .out_channels = gradient.channels,
            .blocks = placed_in.blocks(),
            .parts = parts,
            .result = result.data(),
        };
        run_units(order, kernels.depthwise_weight_units(task), [&](int unit) { kernels.depthwise_weight(task, unit); });
        Outcome outcome;
        outcome.add("parts of result", result, parts, gradient.channels, taps);
        sum_parts(outcome.outputs.back());
        return outcome;
    }

    DepthwiseWeightCase magnitudes() const {
        DepthwiseWeightCase absolute = *this;
        make_absolute(absolute.in.data);
        make_absolute(absolute.gradient.data);
        return absolute;
    }

    double factor(const std::string& /*output*/) const {
        return grain == Grain::whole ? 0 : rounding(gradient.images * gradient.pixels);
    }
};

void try_weights(const Kernels<float>& kernels, Random& random) {
    DepthwiseWeightCase one{};
    do {
        one.sliding = drawn_sliding(random);
        one.partners = drawn_partners(random, 23);
        const int images = drawn_images(random, kernels.lanes);
        one.grain = random.pick({Grain::whole, Grain::rounded});
        one.in =
            drawn(random, images, one.sliding.in.pixels(), static_cast<int>(one.partners.first.size()) - 1, one.grain);
        one.gradient =
            drawn(random, images, one.sliding.out.pixels(), static_cast<int>(one.partners.partner.size()), one.grain);
    } while (static_cast<double>(one.gradient.data.size()) * one.sliding.window.taps() > 3e5);
    one.parts = random.pick({1, 1, 2, 3, random.between(1, 9)});
    one.in_placement = drawn_placement(random);
    one.gradient_placement = drawn_placement(random);
    std::ostringstream text;
    text << "n" << one.in.images << " c" << one.in.channels << ">" << one.gradient.channels << one.sliding << ", "
         << one.parts << " parts" << (one.grain == Grain::whole ? ", whole numbers" : "");
    begin_case(text.str());
    hold(kernels, one, random);
}

}  // namespace

std::vector<Test> depthwise_tests() {
    return {
        {"depthwise_forward", try_forward}, {"depthwise_backward", try_backward}, {"depthwise_weight", try_weights}};
}

}  // namespace distreal::held
