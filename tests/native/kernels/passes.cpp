// Passes over the channels of values.

#include <optional>
#include <sstream>

#include "holding.hpp"
#include "tests.hpp"
#include "windows.hpp"

namespace distreal::held {
namespace {

// What every pass has.
struct Planes {
    int images;
    int pixels;
    int channels;
    Cutting cutting;
    bool live_is_null;

    template <class Real>
    Fenced<Real> live(int lanes) const {
        return Fenced<Real>(live_lanes(images, lanes));
    }
    Cut cut(int lanes) const { return cutting.cut(images, lanes); }
    int units() const { return cutting.cut(images, 1).units(); }
};

Planes drawn_planes(Random& random, int lanes, bool may_have_bands = true) {
    const int images = drawn_images(random, lanes);
    const int pixels = random.pick({1, random.between(1, 20), random.between(1, 100)});
    return {images, pixels, drawn_channels(random), drawn_cutting(random, images, lanes, may_have_bands),
            images % lanes == 0 && random.chance(0.5)};
}

std::string described(const Planes& planes) {
    std::ostringstream text;
    text << "n" << planes.images << " c" << planes.channels << ", " << planes.pixels << " pixels" << planes.cutting;
    return text.str();
}

Values drawn(Random& random, const Planes& planes, Grain grain) {
    return held::drawn(random, planes.images, planes.pixels, planes.channels, grain);
}

Values drawn_eighths(Random& random, const Planes& planes, int limit) {
    return held::drawn_eighths(random, planes.images, planes.pixels, planes.channels, limit);
}

std::vector<double> drawn_eighths(Random& random, int count, int limit) {
    return held::drawn_eighths(random, 1, 1, count, limit).data;
}

std::vector<double> drawn_scales(Random& random, int count) {
    std::vector<double> scales;
    for (int i = 0; i < count; ++i) {
        scales.push_back(random.pick({-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0}));
    }
    return scales;
}

const char* name_of(Activation activation) {
    switch (activation) {
        case Activation::none:
            return ", none";
        case Activation::relu:
            return ", relu";
        case Activation::relu6:
            return ", relu6";
        case Activation::hardswish:
            return ", hardswish";
        case Activation::sigmoid:
            return ", sigmoid";
    }
    return "";
}

Activation drawn_activation(Random& random) {
    return random.pick(
        {Activation::none, Activation::relu, Activation::relu6, Activation::hardswish, Activation::sigmoid});
}

// A value that a kernel writes: into a place of its own or over an input of the same shape and placement.
template <class Real>
class Target {
  public:
    Target(const Placed<Real>& input, bool in_place, const Values& before, int lanes, const Placement& placement,
           bool accumulate, Idle idle = Idle::zero)
        : own_(before, lanes, placement, idle, accumulate ? Content::given : Content::nothing),
          placed_(in_place ? input : own_) {}

    const Placed<Real>& placed() const { return placed_; }

  private:
    Placed<Real> own_;
    const Placed<Real>& placed_;
};

struct MomentsCase {
    Planes planes;
    Values y;
    bool squares;
    Placement placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed(y, kernels.lanes, placement, Idle::finite);
        const Fenced<Real> live(live_lanes(planes.images, kernels.lanes));
        const Cut cut = planes.cut(kernels.lanes);
        const Fenced<Real> sums(static_cast<std::size_t>(cut.units() * 2 * planes.channels));
        const MomentsTask<Real> task{.y = placed.readable(),
                                     .pixels = planes.pixels,
                                     .channels = planes.channels,
                                     .cut = cut,
                                     .live = planes.live_is_null ? nullptr : live.data(),
                                     .squares = squares,
                                     .moments = sums.data()};
        run_units(order, cut.units(), [&](int unit) { kernels.moments(task, unit); });
        Outcome outcome;
        outcome.add("moments", sums, cut.units(), 2, planes.channels);
        return outcome;
    }

    MomentsCase magnitudes() const {
        MomentsCase absolute = *this;
        make_absolute(absolute.y.data);
        return absolute;
    }

    double factor(const std::string& /*output*/) const { return rounding(planes.images * planes.pixels); }
};

void try_moments(const Kernels<float>& kernels, Random& random) {
    const Planes planes = drawn_planes(random, kernels.lanes);
    const MomentsCase one{planes, drawn(random, planes, Grain::rounded), random.chance(0.6), drawn_placement(random)};
    begin_case(described(planes) + (one.squares ? ", squares" : ""));
    hold(kernels, one, random);
}

struct ActivateCase {
    Planes planes;
    Activation activation;
    Values y;
    std::vector<double> scale;  // empty: none
    std::vector<double> shift;
    std::optional<Values> residual;
    bool in_place;
    Placement y_placement;
    Placement residual_placement;
    Placement out_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed(y, kernels.lanes, y_placement, Idle::finite);
        const Placed<Real> placed_residual(residual ? *residual : y, kernels.lanes, residual_placement, Idle::finite);
        const View<const Real> residual_view = placed_residual.readable();
        const Target<Real> out(placed, in_place, y, kernels.lanes, out_placement, false);
        const Fenced<Real> placed_scale(scale);
        const Fenced<Real> placed_shift(shift);
        const ActivateTask<Real> task{.y = placed.readable(),
                                      .scale = scale.empty() ? nullptr : placed_scale.data(),
                                      .shift = scale.empty() ? nullptr : placed_shift.data(),
                                      .residual = residual ? &residual_view : nullptr,
                                      .activation = activation,
                                      .out = out.placed().view(),
                                      .pixels = planes.pixels,
                                      .channels = planes.channels,
                                      .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.activate(task, unit); });
        Outcome outcome;
        outcome.add("out", out.placed(), Idle::finite);
        return outcome;
    }

    // All arguments are exact, so only the activation itself rounds: relative to its result, and for the exponential
    // of a sigmoid also to its argument.
    ActivateCase magnitudes() const { return *this; }

    double factor(const std::string& /*output*/) const {
        if (activation == Activation::sigmoid) {
            return 0x1p-24 * 12;
        }
        return activation == Activation::hardswish ? 0x1p-24 * 4 : 0;
    }
};

ActivateCase drawn_activate(Random& random, int lanes) {
    ActivateCase one{};
    one.planes = drawn_planes(random, lanes);
    one.activation = drawn_activation(random);
    one.y = drawn_eighths(random, one.planes, 8);
    if (random.chance(0.6)) {
        one.scale = drawn_scales(random, one.planes.channels);
        one.shift = drawn_eighths(random, one.planes.channels, 4);
    }
    if (random.chance(0.4)) {
        one.residual = drawn_eighths(random, one.planes, 4);
    }
    one.in_place = random.chance(0.3);
    one.y_placement = drawn_placement(random);
    one.residual_placement = drawn_placement(random);
    one.out_placement = drawn_placement(random);
    return one;
}

std::string described(const ActivateCase& one) {
    return described(one.planes) + name_of(one.activation) + (one.scale.empty() ? "" : ", scale") +
           (one.residual ? ", residual" : "") + (one.in_place ? ", in place" : "");
}

void try_activate(const Kernels<float>& kernels, Random& random) {
    const ActivateCase one = drawn_activate(random, kernels.lanes);
    begin_case(described(one));
    // The magnitude of a negative result is negative.
    const Outcome got = one.run<float>(kernels, random);
    if (one.run<float>(kernels, random).bits != got.bits) {
        throw Failure{"a second run in another order of units made other bits"};
    }
    const Outcome expected = one.run<double>(plain_kernels<double>(), random);
    Output magnitude = expected.outputs[0];
    make_absolute(magnitude.values.data);
    compare(got.outputs[0], expected.outputs[0], magnitude, one.factor("out"));
}

// What is not a number must not become one, or a diverged network would look sound.
void try_activate_nan(const Kernels<float>& kernels, Random& random) {
    ActivateCase one = drawn_activate(random, kernels.lanes);
    begin_case(described(one) + ", not a number");
    for (double& y : one.y.data) {
        y = random.chance(0.5) ? std::nan("") : y;
    }
    const Outcome got = one.run<float>(kernels, random);
    for (std::size_t i = 0; i < one.y.data.size(); ++i) {
        if (std::isnan(one.y.data[i]) != std::isnan(got.outputs[0].values.data[i])) {
            throw Failure{std::isnan(one.y.data[i]) ? "a number was made of what is none" : "a number became none"};
        }
    }
}

// Far from zero a sigmoid is 0 or 1 and nothing else; activations of large numbers stay finite or themselves.
void try_activate_far(const Kernels<float>& kernels, Random& random) {
    ActivateCase one = drawn_activate(random, kernels.lanes);
    one.scale.clear();
    one.shift.clear();
    one.residual.reset();
    begin_case(described(one) + ", far from zero");
    for (double& y : one.y.data) {
        y = random.pick({-1.0, 1.0}) * static_cast<float>(std::pow(10.0, random.between(2, 37)));
    }
    const Outcome got = one.run<float>(kernels, random);
    const Outcome expected = one.run<double>(plain_kernels<double>(), random);
    for (std::size_t i = 0; i < one.y.data.size(); ++i) {
        const double made = got.outputs[0].values.data[i];
        const double wanted = expected.outputs[0].values.data[i];
        if (!(std::abs(made - wanted) <= 1e-37 + 1e-6 * std::abs(wanted))) {
            throw Failure{std::to_string(one.y.data[i]) + " became " + std::to_string(made)};
        }
    }
}

struct ActivateBackwardCase {
    Planes planes;
    Activation activation;
    Values gradient;
    Values y;
    std::optional<Values> out;
    std::vector<double> scale;  // empty: none
    std::vector<double> shift;
    std::vector<double> mean;  // empty: no sums
    Values masked;             // before
    bool accumulate;
    bool in_place;
    Placement gradient_placement;
    Placement y_placement;
    Placement out_placement;
    Placement masked_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_gradient(gradient, kernels.lanes, gradient_placement, Idle::zero);
        const Placed<Real> placed_y(y, kernels.lanes, y_placement, Idle::finite);
        const Placed<Real> placed_out(out ? *out : y, kernels.lanes, out_placement, Idle::finite);
        const Target<Real> target(placed_gradient, in_place, masked, kernels.lanes, masked_placement, accumulate);
        const Fenced<Real> placed_scale(scale);
        const Fenced<Real> placed_shift(shift);
        const Fenced<Real> placed_mean(mean);
        const Cut cut = planes.cut(kernels.lanes);
        const int units = mean.empty() ? 0 : cut.units();
        const Fenced<Real> sums(static_cast<std::size_t>(units * 2 * planes.channels));
        const ActivateBackwardTask<Real> task{
            .gradient = placed_gradient.readable(),
            .y = placed_y.readable(),
            .out = out ? placed_out.readable() : View<const Real>{},
            .scale = scale.empty() ? nullptr : placed_scale.data(),
            .shift = scale.empty() ? nullptr : placed_shift.data(),
            .activation = activation,
            .masked = target.placed().view(),
            .accumulate = accumulate,
            .mean = mean.empty() ? nullptr : placed_mean.data(),
            .sums = mean.empty() ? nullptr : sums.data(),
            .pixels = planes.pixels,
            .channels = planes.channels,
            .cut = cut,
        };
        run_units(order, cut.units(), [&](int unit) { kernels.activate_backward(task, unit); });
        Outcome outcome;
        outcome.add("masked", target.placed(), Idle::zero);
        outcome.add("sums", sums, units, 2, planes.channels);
        return outcome;
    }

    // A derivative is never above 1.5, that of a hardswish.
    ActivateBackwardCase magnitudes() const {
        ActivateBackwardCase absolute = *this;
        absolute.activation = Activation::none;
        make_absolute(absolute.gradient.data);
        make_absolute(absolute.masked.data);
        make_absolute(absolute.y.data);
        make_absolute(absolute.mean);
        for (double& of_channel : absolute.mean) {
            of_channel = -of_channel;
        }
        return absolute;
    }

    double factor(const std::string& output) const {
        if (output == "sums") {
            return 1.5 * rounding(8 + planes.images * planes.pixels);
        }
        if (activation == Activation::hardswish || activation == Activation::sigmoid) {
            return 1.5 * rounding(4);
        }
        return accumulate ? rounding(1) : 0;
    }
};

double drawn_result(Random& random, Activation activation) {
    switch (activation) {
        case Activation::relu:
            return random.between(0, 16) / 8.0;
        case Activation::relu6:
            return random.between(0, 12) / 2.0;
        case Activation::sigmoid:
            return random.unit();
        default:
            return random.number(Grain::rounded);
    }
}

void try_activate_backward(const Kernels<float>& kernels, Random& random) {
    ActivateBackwardCase one{};
    one.planes = drawn_planes(random, kernels.lanes);
    one.activation = drawn_activation(random);
    one.gradient = drawn(random, one.planes, Grain::rounded);
    one.y = drawn_eighths(random, one.planes, 8);
    if (random.chance(0.5)) {
        one.out = one.y;
        for (double& out : one.out->data) {
            out = static_cast<float>(drawn_result(random, one.activation));
        }
    }
    if (random.chance(0.6)) {
        one.scale = drawn_scales(random, one.planes.channels);
        one.shift = drawn_eighths(random, one.planes.channels, 4);
    }
    if (random.chance(0.5)) {
        one.mean = drawn_eighths(random, one.planes.channels, 2);
    }
    one.accumulate = one.mean.empty() && random.chance(0.5);
    one.in_place = !one.accumulate && random.chance(0.4);
    one.masked = drawn(random, one.planes, Grain::rounded);
    one.gradient_placement = drawn_placement(random);
    one.y_placement = drawn_placement(random);
    one.out_placement = drawn_placement(random);
    one.masked_placement = drawn_placement(random);
    begin_case(described(one.planes) + name_of(one.activation) + (one.out ? ", from out" : "") +
               (one.scale.empty() ? "" : ", scale") + (one.mean.empty() ? "" : ", sums") +
               (one.accumulate ? ", accumulate" : "") + (one.in_place ? ", in place" : ""));
    hold(kernels, one, random);
}

struct NormaliseBackwardCase {
    Planes planes;
    Values gradient;
    Values y;
    std::vector<double> a;
    std::vector<double> b;
    std::vector<double> c;
    Values to;  // before
    bool accumulate;
    bool in_place;
    Placement gradient_placement;
    Placement y_placement;
    Placement to_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_gradient(gradient, kernels.lanes, gradient_placement, Idle::zero);
        const Placed<Real> placed_y(y, kernels.lanes, y_placement, Idle::finite);
        const Target<Real> target(placed_gradient, in_place, to, kernels.lanes, to_placement, accumulate);
        const Fenced<Real> placed_a(a);
        const Fenced<Real> placed_b(b);
        const Fenced<Real> placed_c(c);
        const Fenced<Real> live(live_lanes(planes.images, kernels.lanes));
        const NormaliseBackwardTask<Real> task{.gradient = placed_gradient.readable(),
                                               .y = placed_y.readable(),
                                               .a = placed_a.data(),
                                               .b = placed_b.data(),
                                               .c = placed_c.data(),
                                               .live = planes.live_is_null ? nullptr : live.data(),
                                               .to = target.placed().view(),
                                               .accumulate = accumulate,
                                               .pixels = planes.pixels,
                                               .channels = planes.channels,
                                               .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.normalise_backward(task, unit); });
        Outcome outcome;
        outcome.add("to", target.placed(), Idle::zero);
        return outcome;
    }

    NormaliseBackwardCase magnitudes() const {
        NormaliseBackwardCase absolute = *this;
        for (auto* const numbers :
             {&absolute.gradient.data, &absolute.y.data, &absolute.a, &absolute.b, &absolute.c, &absolute.to.data}) {
            make_absolute(*numbers);
        }
        return absolute;
    }

    double factor(const std::string& /*output*/) const { return rounding(4); }
};

void try_normalise_backward(const Kernels<float>& kernels, Random& random) {
    NormaliseBackwardCase one{};
    one.planes = drawn_planes(random, kernels.lanes);
    one.gradient = drawn(random, one.planes, Grain::rounded);
    one.y = drawn(random, one.planes, Grain::rounded);
    one.a = random.numbers(one.planes.channels, Grain::rounded);
    one.b = random.numbers(one.planes.channels, Grain::rounded);
    one.c = random.numbers(one.planes.channels, Grain::rounded);
    one.to = drawn(random, one.planes, Grain::rounded);
    one.accumulate = random.chance(0.5);
    one.in_place = !one.accumulate && random.chance(0.5);
    one.gradient_placement = drawn_placement(random);
    one.y_placement = drawn_placement(random);
    one.to_placement = drawn_placement(random);
    begin_case(described(one.planes) + (one.accumulate ? ", accumulate" : "") + (one.in_place ? ", in place" : ""));
    hold(kernels, one, random);
}

struct CopyCase {
    Planes planes;
    Values from;
    Values to;  // before
    bool accumulate;
    Placement from_placement;
    Placement to_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_from(from, kernels.lanes, from_placement, Idle::zero);
        const Placed<Real> placed_to(to, kernels.lanes, to_placement, Idle::zero,
                                     accumulate ? Content::given : Content::nothing);
        const CopyTask<Real> task{.from = placed_from.readable(),
                                  .to = placed_to.view(),
                                  .accumulate = accumulate,
                                  .pixels = planes.pixels,
                                  .channels = planes.channels,
                                  .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.copy(task, unit); });
        Outcome outcome;
        outcome.add("to", placed_to, Idle::zero);
        return outcome;
    }

    CopyCase magnitudes() const { return *this; }
    double factor(const std::string& /*output*/) const { return 0; }
};

void try_copy(const Kernels<float>& kernels, Random& random) {
    const Planes planes = drawn_planes(random, kernels.lanes);
    const CopyCase one{planes,
                       drawn(random, planes, Grain::whole),
                       drawn(random, planes, Grain::whole),
                       random.chance(0.5),
                       drawn_placement(random),
                       drawn_placement(random)};
    begin_case(described(planes) + (one.accumulate ? ", accumulate" : ""));
    hold(kernels, one, random);
}

struct AddCase {
    Planes planes;
    Values one;
    Values other;
    Placement one_placement;
    Placement other_placement;
    Placement out_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_one(one, kernels.lanes, one_placement, Idle::finite);
        const Placed<Real> placed_other(other, kernels.lanes, other_placement, Idle::finite);
        const Placed<Real> out(one, kernels.lanes, out_placement, Idle::finite, Content::nothing);
        const AddTask<Real> task{.one = placed_one.readable(),
                                 .other = placed_other.readable(),
                                 .out = out.view(),
                                 .pixels = planes.pixels,
                                 .channels = planes.channels,
                                 .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.add(task, unit); });
        Outcome outcome;
        outcome.add("out", out, Idle::finite);
        return outcome;
    }

    AddCase magnitudes() const { return *this; }
    double factor(const std::string& /*output*/) const { return 0; }
};

void try_add(const Kernels<float>& kernels, Random& random) {
    const Planes planes = drawn_planes(random, kernels.lanes);
    const AddCase one{planes,
                      drawn(random, planes, Grain::whole),
                      drawn(random, planes, Grain::whole),
                      drawn_placement(random),
                      drawn_placement(random),
                      drawn_placement(random)};
    begin_case(described(planes));
    hold(kernels, one, random);
}

struct MultiplyCase {
    Planes planes;
    Grain grain;
    bool other_is_single;
    bool reduce;
    Values one;
    Values other;
    Values to;  // before
    bool accumulate;
    Placement one_placement;
    Placement other_placement;
    Placement to_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_one(one, kernels.lanes, one_placement, Idle::zero);
        const Placed<Real> placed_other(other, kernels.lanes, other_placement, Idle::finite);
        const Placed<Real> placed_to(to, kernels.lanes, to_placement, Idle::zero,
                                     accumulate ? Content::given : Content::nothing);
        const MultiplyTask<Real> task{.one = placed_one.readable(),
                                      .other = placed_other.readable(),
                                      .other_is_single = other_is_single,
                                      .reduce = reduce,
                                      .to = placed_to.view(),
                                      .accumulate = accumulate,
                                      .pixels = planes.pixels,
                                      .channels = planes.channels,
                                      .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.multiply(task, unit); });
        Outcome outcome;
        outcome.add("to", placed_to, Idle::zero);
        return outcome;
    }

    MultiplyCase magnitudes() const {
        MultiplyCase absolute = *this;
        make_absolute(absolute.one.data);
        make_absolute(absolute.other.data);
        make_absolute(absolute.to.data);
        return absolute;
    }

    double factor(const std::string& /*output*/) const {
        return grain == Grain::whole ? 0 : rounding(reduce ? planes.pixels + 1 : 2);
    }
};

void try_multiply(const Kernels<float>& kernels, Random& random) {
    MultiplyCase one{};
    one.reduce = random.chance(0.4);
    one.other_is_single = !one.reduce && random.chance(0.5);
    one.planes = drawn_planes(random, kernels.lanes, !one.reduce);
    one.grain = random.pick({Grain::whole, Grain::rounded});
    Planes single = one.planes;
    single.pixels = 1;
    one.one = drawn(random, one.planes, one.grain);
    one.other = drawn(random, one.other_is_single ? single : one.planes, one.grain);
    one.to = drawn(random, one.reduce ? single : one.planes, one.grain);
    one.accumulate = random.chance(0.5);
    one.one_placement = drawn_placement(random);
    one.other_placement = drawn_placement(random);
    one.to_placement = drawn_placement(random);
    begin_case(described(one.planes) + (one.reduce ? ", reduce" : "") +
               (one.other_is_single ? ", other is single" : "") + (one.accumulate ? ", accumulate" : ""));
    hold(kernels, one, random);
}

struct FlattenCase {
    Planes planes;
    Values from;
    Values to;  // before
    bool backward;
    bool accumulate;
    std::vector<std::int32_t> feature;
    Placement from_placement;
    Placement to_placement;

    template <class Real>
    Outcome run(const Kernels<Real>& kernels, Random& order) const {
        const Placed<Real> placed_from(from, kernels.lanes, from_placement, Idle::zero);
        const Placed<Real> placed_to(to, kernels.lanes, to_placement, Idle::zero,
                                     accumulate ? Content::given : Content::nothing);
        const FlattenTask<Real> task{.from = placed_from.readable(),
                                     .to = placed_to.view(),
                                     .backward = backward,
                                     .accumulate = accumulate,
                                     .feature = feature.data(),
                                     .pixels = planes.pixels,
                                     .channels = planes.channels,
                                     .cut = planes.cut(kernels.lanes)};
        run_units(order, task.cut.units(), [&](int unit) { kernels.flatten(task, unit); });
        Outcome outcome;
        outcome.add("to", placed_to, Idle::zero);
        return outcome;
    }

    FlattenCase magnitudes() const { return *this; }
    double factor(const std::string& /*output*/) const { return 0; }
};

void try_flatten(const Kernels<float>& kernels, Random& random) {
    FlattenCase one{};
    one.planes = drawn_planes(random, kernels.lanes, false);
    const int size = one.planes.pixels * one.planes.channels;
    Planes features = one.planes;
    features.pixels = 1;
    features.channels = size;
    one.backward = random.chance(0.5);
    one.from = drawn(random, one.backward ? features : one.planes, Grain::whole);
    one.to = drawn(random, one.backward ? one.planes : features, Grain::whole);
    one.accumulate = random.chance(0.4);
    if (random.chance(0.5)) {
        const std::vector<int> order = random.shuffled(size);
        one.feature.assign(order.begin(), order.end());
    } else {
        for (int i = 0; i < size; ++i) {
            one.feature.push_back(i % one.planes.channels * one.planes.pixels + i / one.planes.channels);
        }
    }
    one.from_placement = drawn_placement(random);
    one.to_placement = drawn_placement(random);
    begin_case(described(one.planes) + (one.backward ? ", backward" : "") + (one.accumulate ? ", accumulate" : ""));
    hold(kernels, one, random);
}

}  // namespace

std::vector<Test> pass_tests() {
    return {
        {"moments", try_moments},
        {"activate", try_activate},
        {"activate_nan", try_activate_nan},
        {"activate_far", try_activate_far},
        {"activate_backward", try_activate_backward},
        {"normalise_backward", try_normalise_backward},
        {"copy", try_copy},
        {"add", try_add},
        {"multiply", try_multiply},
        {"flatten", try_flatten},
    };
}

}  // namespace distreal::held
