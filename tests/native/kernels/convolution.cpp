// Packing and gathering: convolution forward and backward-data.

#include <algorithm>
#include <optional>
#include <sstream>

#include "holding.hpp"
#include "matrix.hpp"
#include "tests.hpp"
#include "through.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

struct GatherCase {
    Sliding sliding;
    bool backward;
    int images;
    Matrix matrix;
    Grain grain;
    Values from;
    Values to;  // before
    bool accumulate;
    std::vector<double> bias;  // empty: none
    bool moments;
    bool live_is_null;
    std::optional<Through> through;
    Cutting cutting;
    Placement from_placement;
    Placement to_placement;

    Gather gather() const {
        return backward ? backward_gather(sliding.window, sliding.in, sliding.out)
                        : forward_gather(sliding.window, sliding.in, sliding.out);
    }

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Gather geometry = gather();
        const Placed<Real> placed_from(from, kernels.lanes, from_placement, backward ? Idle::zero : Idle::finite);
        const Placed<Real> placed_to(to, kernels.lanes, to_placement, backward ? Idle::zero : Idle::finite,
                                     accumulate ? Content::given : Content::nothing);
        const PackedMatrix<Real> packed(kernels, matrix, order);
        const Fenced<Real> placed_bias(bias);
        const Fenced<Real> live(live_lanes(images, kernels.lanes));
        const Cut cut = cutting.cut(images, kernels.lanes);
        const Fenced<Real> sums(static_cast<std::size_t>(moments || through ? cut.units() * 2 * to.channels : 0));
        const PlacedThrough<Real> placed_through(through, kernels.lanes, sums.data());
        const GatherTask<Real> task{
            .gather = &geometry,
            .from = placed_from.readable(),
            .to = placed_to.view(),
            .from_channels = from.channels,
            .to_channels = to.channels,
            .packed = packed.data(),
            .bias = bias.empty() ? nullptr : placed_bias.data(),
            .accumulate = accumulate,
            .cut = cut,
            .moments = moments ? sums.data() : nullptr,
            .live = moments && !live_is_null ? live.data() : nullptr,
            .through = placed_through.task(),
        };
        run_units(order, cut.units(), [&](int unit) { kernels.gather(task, unit); });
        Outcome outcome;
        outcome.add("to", placed_to, backward && bias.empty() ? Idle::zero : Idle::finite);
        outcome.add("sums", sums, sums.size() == 0 ? 0 : cut.units(), 2, to.channels);
        sum_bands(outcome.outputs.back(), cut.bands);
        return outcome;
    }

    GatherCase magnitudes() const {
        GatherCase absolute = *this;
        absolute.matrix.make_absolute();
        make_absolute(absolute.from.data);
        make_absolute(absolute.to.data);
        make_absolute(absolute.bias);
        if (through) {
            absolute.through->make_absolute();
        }
        return absolute;
    }

    double factor(const std::string& output) const {
        const double terms = matrix.taps * from.channels + 4;
        if (output == "sums") {
            return 2 * rounding(terms + to.images * to.pixels);
        }
        return grain == Grain::whole ? 0 : rounding(terms);
    }
};

GatherCase drawn_gather(Random& random, int lanes) {
    for (;;) {
        GatherCase one{};
        one.sliding = drawn_sliding(random);
        one.backward = random.chance(0.5);
        one.images = drawn_images(random, lanes);
        const Plane from = one.backward ? one.sliding.out : one.sliding.in;
        const Plane to = one.backward ? one.sliding.in : one.sliding.out;
        const auto [from_channels, to_channels, most_products] = drawn_channel_pair(random);
        const int taps = one.sliding.window.taps();
        if (static_cast<double>(one.images) * to.pixels() * from_channels * to_channels * taps > most_products) {
            continue;
        }
        one.grain = random.pick({Grain::whole, Grain::rounded});
        one.matrix = drawn_matrix(random, to_channels, from_channels, taps, one.backward, one.grain);
        one.from = drawn(random, one.images, from.pixels(), from_channels, one.grain);
        one.to = drawn(random, one.images, to.pixels(), to_channels, one.grain);
        one.accumulate = random.chance(0.4);
        if (random.chance(one.backward ? 0.1 : 0.5)) {
            one.bias = random.numbers(to_channels, one.grain);
        }
        one.moments = !one.backward && random.chance(0.5);
        one.live_is_null = one.images % lanes == 0 && random.chance(0.5);
        if (one.backward && one.bias.empty() && random.chance(0.6)) {
            one.through = drawn_through(random, one.to);
        }
        one.cutting = drawn_cutting(random, one.images, lanes);
        one.from_placement = drawn_placement(random);
        one.to_placement = drawn_placement(random);
        return one;
    }
}

std::string described(const GatherCase& one) {
    std::ostringstream text;
    text << "n" << one.images << " c" << one.from.channels << ">" << one.to.channels << one.sliding << one.cutting
         << (one.backward ? ", backward" : ", forward") << (one.grain == Grain::whole ? ", whole numbers" : "")
         << (one.accumulate ? ", accumulate" : "") << (one.bias.empty() ? "" : ", bias")
         << (one.moments ? ", moments" : "") << (one.through ? ", through" : "");
    return text.str();
}

void try_gather(const Kernels<float>& kernels, Random& random) {
    const GatherCase one = drawn_gather(random, kernels.lanes);
    begin_case(described(one));
    hold(kernels, one, random);
}

}  // namespace

std::vector<Test> convolution_tests() { return {{"gather", try_gather}}; }

}  // namespace distreal::held
