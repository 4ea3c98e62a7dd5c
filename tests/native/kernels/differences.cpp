// The plain backward kernels against central differences of the forward ones, in double precision.

#include <cmath>
#include <sstream>

#include "plain_calls.hpp"
#include "tests.hpp"

namespace distreal::held {
namespace {

constexpr double step = 1e-5;
constexpr double tolerance = 1e-7;

double inner_product(const Values& one, const Values& other) {
    double sum = 0;
    for (std::size_t i = 0; i < one.data.size(); ++i) {
        sum += one.data[i] * other.data[i];
    }
    return sum;
}

// The derivative of loss() by every one of the numbers, which it reads.
template <class Loss>
std::vector<double> differences(std::vector<double>& numbers, const Loss& loss) {
    std::vector<double> made;
    for (double& number : numbers) {
        const double before = number;
        number = before + step;
        const double above = loss();
        number = before - step;
        made.push_back((above - loss()) / (2 * step));
        number = before;
    }
    return made;
}

Sliding drawn_small(Random& random, bool of_pool = false) {
    for (;;) {
        const Sliding sliding = drawn_sliding(random, of_pool);
        if (sliding.in.pixels() <= 40 && sliding.window.taps() <= 15) {
            std::ostringstream text;
            text << sliding;
            begin_case(text.str());
            return sliding;
        }
    }
}

void try_convolution(Random& random) {
    const Sliding s = drawn_small(random);
    Values x = drawn(random, random.between(1, 2), s.in.pixels(), random.between(1, 3), Grain::rounded);
    const int outputs = random.between(1, 3);
    std::vector<double> weights = random.numbers(outputs * x.channels * s.window.taps(), Grain::rounded);
    const Values g = drawn(random, x.images, s.out.pixels(), outputs, Grain::rounded);
    const auto loss = [&] { return inner_product(g, convolved(s, x, weights, outputs, false)); };
    expect_near("gradient of x", convolved(s, g, weights, x.channels, true).data, differences(x.data, loss), tolerance);
    expect_near("gradient of weights", weight_gradient(s, x, g), differences(weights, loss), tolerance);
}

void try_depthwise(Random& random) {
    const Sliding s = drawn_small(random);
    Values x = drawn(random, random.between(1, 2), s.in.pixels(), random.between(1, 3), Grain::rounded);
    const int multiplier = random.between(1, 3);
    const int outputs = multiplier * x.channels;
    std::vector<double> weights = random.numbers(outputs * s.window.taps(), Grain::rounded);
    const Values g = drawn(random, x.images, s.out.pixels(), outputs, Grain::rounded);
    const auto loss = [&] { return inner_product(g, depthwise_convolved(s, x, weights, multiplier, false)); };
    expect_near("gradient of x", depthwise_convolved(s, g, weights, multiplier, true).data, differences(x.data, loss),
                tolerance);
    expect_near("gradient of weights", depthwise_weight_gradient(s, x, g), differences(weights, loss), tolerance);
}

bool is_near_a_corner(Activation activation, double x) {
    const auto near = [x](double corner) { return std::abs(x - corner) < 1e-3; };
    switch (activation) {
        case Activation::relu:
            return near(0);
        case Activation::relu6:
            return near(0) || near(6);
        case Activation::hardswish:
            return near(-3) || near(3);
        default:
            return false;
    }
}

// Numbers for which scale * y + shift lies on both sides of the activation's corners, and near none of them.
Values drawn_away_from_corners(Random& random, int images, int pixels, Activation activation,
                               const std::vector<double>& scale, const std::vector<double>& shift) {
    Values y(images, pixels, static_cast<int>(scale.size()));
    for (std::size_t i = 0; i < y.data.size(); ++i) {
        const std::size_t c = i % scale.size();
        do {
            y.data[i] = 10 * random.number(Grain::rounded);
        } while (is_near_a_corner(activation, scale[c] * y.data[i] + shift[c]));
    }
    return y;
}

std::vector<double> drawn_scale(Random& random, int channels) {
    std::vector<double> scale;
    for (int c = 0; c < channels; ++c) {
        scale.push_back(random.pick({-1.5, -0.75, 0.5, 1.0, 1.25}));
    }
    return scale;
}

// Convolution after an activation: its gradient goes back through the activation, and the sums are those by shift and,
// less what the mean takes away, by scale.
void try_through(Random& random) {
    const Sliding s = drawn_small(random);
    const Activation activation = random.pick({Activation::none, Activation::relu, Activation::relu6});
    const int channels = random.between(1, 3);
    std::vector<double> scale = drawn_scale(random, channels);
    std::vector<double> shift = random.numbers(channels, Grain::rounded);
    const std::vector<double> mean = random.numbers(channels, Grain::rounded);
    Values y = drawn_away_from_corners(random, random.between(1, 2), s.in.pixels(), activation, scale, shift);
    const std::vector<double> weights = random.numbers(2 * channels * s.window.taps(), Grain::rounded);
    const Values g = drawn(random, y.images, s.out.pixels(), 2, Grain::rounded);
    const auto loss = [&] {
        return inner_product(g, convolved(s, activated(y, activation, scale, shift), weights, 2, false));
    };

    std::vector<double> sums(static_cast<std::size_t>(2 * channels));
    const ThroughActivation<double> through{
        activation, view_of(std::as_const(y)), scale.data(), shift.data(), mean.data(), sums.data()};
    std::vector<double> of_y = convolved(s, g, weights, channels, true, {}, &through).data;
    std::vector<double> of_shift;
    std::vector<double> of_scale;
    for (std::size_t c = 0; c < scale.size(); ++c) {
        of_shift.push_back(sums[c]);
        of_scale.push_back(sums[scale.size() + c] + mean[c] * sums[c]);
    }
    for (std::size_t i = 0; i < of_y.size(); ++i) {
        of_y[i] *= scale[i % scale.size()];
    }
    expect_near("gradient of y", of_y, differences(y.data, loss), tolerance);
    expect_near("gradient of shift", of_shift, differences(shift, loss), tolerance);
    expect_near("gradient of scale", of_scale, differences(scale, loss), tolerance);
}

void try_activations(Random& random) {
    const Activation activation = random.pick(
        {Activation::none, Activation::relu, Activation::relu6, Activation::hardswish, Activation::sigmoid});
    const bool scaled = random.chance(0.5);
    const bool from_out = random.chance(0.5);
    const std::vector<double> scale = scaled ? drawn_scale(random, 3) : std::vector<double>(3, 1.0);
    const std::vector<double> shift = scaled ? random.numbers(3, Grain::rounded) : std::vector<double>(3, 0.0);
    Values y = drawn_away_from_corners(random, 2, random.between(1, 6), activation, scale, shift);
    const Values g = drawn(random, 2, y.pixels, 3, Grain::rounded);
    const auto loss = [&] { return inner_product(g, activated(y, activation, scale, shift)); };
    std::vector<double> expected = differences(y.data, loss);
    for (std::size_t i = 0; i < expected.size(); ++i) {
        expected[i] /= scale[i % 3];
    }
    const Values out = activated(y, activation, scale, shift);
    Values masked(2, y.pixels, 3);
    const ActivateBackwardTask<double> task{.gradient = view_of(g),
                                            .y = view_of(std::as_const(y)),
                                            .out = from_out ? view_of(out) : View<const double>{},
                                            .scale = scaled ? scale.data() : nullptr,
                                            .shift = scaled ? shift.data() : nullptr,
                                            .activation = activation,
                                            .masked = view_of(masked),
                                            .accumulate = false,
                                            .mean = nullptr,
                                            .sums = nullptr,
                                            .pixels = y.pixels,
                                            .channels = 3,
                                            .cut = whole(y)};
    plain().activate_backward(task, 0);
    expect_near("gradient", masked.data, expected, tolerance);
}

// Batch norm by batch statistics, as an engine puts it together: from moments to scale and shift, and back from the
// sums of the gradient to a, b and c.
struct BatchNorm {
    std::vector<double> weight;
    std::vector<double> bias;
    double epsilon;
    std::vector<double> mean{};
    std::vector<double> deviation{};
    std::vector<double> scale{};
    std::vector<double> shift{};

    Values normalised(const Values& y) {
        const std::vector<double> sums = moments(y);
        const double count = y.images * y.pixels;
        mean.clear();
        deviation.clear();
        scale.clear();
        shift.clear();
        for (std::size_t c = 0; c < weight.size(); ++c) {
            mean.push_back(sums[c] / count);
            deviation.push_back(std::sqrt(sums[weight.size() + c] / count - mean[c] * mean[c] + epsilon));
            scale.push_back(weight[c] / deviation[c]);
            shift.push_back(bias[c] - mean[c] * scale[c]);
        }
        return activated(y, Activation::none, scale, shift);
    }
};

void try_batch_norm(Random& random) {
    const int channels = random.between(1, 3);
    Values y = drawn(random, random.between(1, 3), random.between(2, 7), channels, Grain::rounded);
    const Values g = drawn(random, y.images, y.pixels, channels, Grain::rounded);
    BatchNorm norm{random.numbers(channels, Grain::rounded), random.numbers(channels, Grain::rounded), 0.01};
    std::vector<double> of_y = differences(y.data, [&] { return inner_product(g, norm.normalised(y)); });
    std::vector<double> of_weight = differences(norm.weight, [&] { return inner_product(g, norm.normalised(y)); });

    norm.normalised(y);
    Values masked = g;
    std::vector<double> sums(static_cast<std::size_t>(2 * channels));
    plain().activate_backward({.gradient = view_of(g),
                               .y = view_of(std::as_const(y)),
                               .out = {},
                               .scale = norm.scale.data(),
                               .shift = norm.shift.data(),
                               .activation = Activation::none,
                               .masked = view_of(masked),
                               .accumulate = false,
                               .mean = norm.mean.data(),
                               .sums = sums.data(),
                               .pixels = y.pixels,
                               .channels = channels,
                               .cut = whole(y)},
                              0);
    const double count = y.images * y.pixels;
    std::vector<double> b;
    std::vector<double> constant;
    std::vector<double> of_weight_by_sums;
    for (std::size_t c = 0; c < norm.scale.size(); ++c) {
        const double products = sums[norm.scale.size() + c];
        b.push_back(-norm.scale[c] * products / (count * norm.deviation[c] * norm.deviation[c]));
        constant.push_back(-norm.scale[c] * sums[c] / count - b[c] * norm.mean[c]);
        of_weight_by_sums.push_back(products / norm.deviation[c]);
    }
    plain().normalise_backward({.gradient = view_of(std::as_const(masked)),
                                .y = view_of(std::as_const(y)),
                                .a = norm.scale.data(),
                                .b = b.data(),
                                .c = constant.data(),
                                .live = nullptr,
                                .to = view_of(masked),
                                .accumulate = false,
                                .pixels = y.pixels,
                                .channels = channels,
                                .cut = whole(y)},
                               0);
    expect_near("gradient of y", masked.data, of_y, tolerance);
    expect_near("gradient of weight", of_weight_by_sums, of_weight, tolerance);
}

void try_products(Random& random) {
    Values one = drawn(random, 2, random.between(2, 7), 3, Grain::rounded);
    Values other = drawn(random, 2, random.chance(0.5) ? 1 : one.pixels, 3, Grain::rounded);
    const Values g = drawn(random, 2, one.pixels, 3, Grain::rounded);
    const auto loss = [&] { return inner_product(g, multiplied(one, other, false)); };
    expect_near("gradient of one", multiplied(g, other, false).data, differences(one.data, loss), tolerance);
    expect_near("gradient of other", multiplied(g, one, other.pixels == 1).data, differences(other.data, loss),
                tolerance);
}

void try_pools(Random& random) {
    const Pool pool{drawn_small(random, true), random.chance(0.5), random.chance(0.5)};
    Values x(random.between(1, 2), pool.sliding.in.pixels(), random.between(1, 3));
    // All different, so that no small step changes which is the greatest.
    const std::vector<int> order = random.shuffled(static_cast<int>(x.data.size()));
    for (std::size_t i = 0; i < x.data.size(); ++i) {
        x.data[i] = 0.01 * order[i];
    }
    const Values g = drawn(random, x.images, pool.sliding.out.pixels(), x.channels, Grain::rounded);
    const std::vector<double> expected = differences(x.data, [&] { return inner_product(g, pooled(pool, x)); });
    expect_near("gradient", pool_gradient(pool, x, g).data, expected, tolerance);
}

void try_flatten(Random& random) {
    Values maps = drawn(random, 2, random.between(1, 6), random.between(1, 6), Grain::rounded);
    const int size = maps.pixels * maps.channels;
    const std::vector<int> order = random.shuffled(size);
    const std::vector<std::int32_t> feature(order.begin(), order.end());
    const Values g = drawn(random, 2, 1, size, Grain::rounded);
    const auto loss = [&] { return inner_product(g, flattened(maps, feature, maps.pixels, maps.channels, false)); };
    expect_near("gradient", flattened(g, feature, maps.pixels, maps.channels, true).data, differences(maps.data, loss),
                tolerance);
}

}  // namespace

std::vector<PlainTest> difference_tests() {
    return {
        {"differences_of_convolution", try_convolution},
        {"differences_of_depthwise", try_depthwise},
        {"differences_of_through", try_through},
        {"differences_of_activations", try_activations},
        {"differences_of_batch_norm", try_batch_norm},
        {"differences_of_products", try_products},
        {"differences_of_pools", try_pools},
        {"differences_of_flatten", try_flatten},
    };
}

}  // namespace distreal::held
