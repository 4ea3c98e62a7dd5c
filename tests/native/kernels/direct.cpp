// The plain forward kernels against their formulas, written without any of the kernels' geometry.

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "plain_calls.hpp"
#include "tests.hpp"

namespace distreal::held {
namespace {

constexpr double tolerance = 1e-12;

// The pixel that tap (ky, kx) of a window reads for output (oy, ox), or -1 in the padding.
int pixel_read(const Sliding& s, int oy, int ox, int ky, int kx) {
    const int y = oy * s.window.stride[0] - s.window.padding[0] + ky * s.window.dilation[0];
    const int x = ox * s.window.stride[1] - s.window.padding[1] + kx * s.window.dilation[1];
    return y < 0 || x < 0 || y >= s.in.height || x >= s.in.width ? -1 : y * s.in.width + x;
}

// Calls visit(output pixel, tap, input pixel or -1) for all of them, in the order of taps.
template <class Visit>
void for_each_read(const Sliding& s, const Visit& visit) {
    for (int oy = 0; oy < s.out.height; ++oy) {
        for (int ox = 0; ox < s.out.width; ++ox) {
            for (int ky = 0; ky < s.window.kernel[0]; ++ky) {
                for (int kx = 0; kx < s.window.kernel[1]; ++kx) {
                    visit(oy * s.out.width + ox, ky * s.window.kernel[1] + kx, pixel_read(s, oy, ox, ky, kx));
                }
            }
        }
    }
}

Sliding drawn_small(Random& random, bool of_pool = false) {
    for (;;) {
        const Sliding sliding = drawn_sliding(random, of_pool);
        if (sliding.in.pixels() <= 100) {
            std::ostringstream text;
            text << sliding;
            begin_case(text.str());
            return sliding;
        }
    }
}

void try_convolution(Random& random) {
    const Sliding s = drawn_small(random);
    const int taps = s.window.taps();
    const Values x = drawn(random, random.between(1, 3), s.in.pixels(), random.between(1, 5), Grain::rounded);
    const int outputs = random.between(1, 5);
    const std::vector<double> weights = random.numbers(outputs * x.channels * taps, Grain::rounded);
    const std::vector<double> bias = random.numbers(outputs, Grain::rounded);
    Values expected(x.images, s.out.pixels(), outputs);
    for (int n = 0; n < x.images; ++n) {
        for (int o = 0; o < outputs; ++o) {
            for (int p = 0; p < s.out.pixels(); ++p) {
                expected.at(n, p, o) = bias[static_cast<std::size_t>(o)];
            }
            for (int i = 0; i < x.channels; ++i) {
                for_each_read(s, [&](int to, int tap, int from) {
                    const auto weight = static_cast<std::size_t>((o * x.channels + i) * taps + tap);
                    expected.at(n, to, o) += from < 0 ? 0 : weights[weight] * x.at(n, from, i);
                });
            }
        }
    }
    expect_near("y", convolved(s, x, weights, outputs, false, bias).data, expected.data, tolerance);
}

void try_depthwise(Random& random) {
    const Sliding s = drawn_small(random);
    const int taps = s.window.taps();
    const int multiplier = random.between(1, 3);
    const Values x = drawn(random, random.between(1, 3), s.in.pixels(), random.between(1, 5), Grain::rounded);
    const int outputs = multiplier * x.channels;
    const std::vector<double> weights = random.numbers(outputs * taps, Grain::rounded);
    const std::vector<double> bias = random.numbers(outputs, Grain::rounded);
    Values expected(x.images, s.out.pixels(), outputs);
    for (int n = 0; n < x.images; ++n) {
        for (int o = 0; o < outputs; ++o) {
            for (int p = 0; p < s.out.pixels(); ++p) {
                expected.at(n, p, o) = bias[static_cast<std::size_t>(o)];
            }
            for_each_read(s, [&](int to, int tap, int from) {
                const double weight = weights[static_cast<std::size_t>(o * taps + tap)];
                expected.at(n, to, o) += from < 0 ? 0 : weight * x.at(n, from, o / multiplier);
            });
        }
    }
    expect_near("y", depthwise_convolved(s, x, weights, multiplier, false, bias).data, expected.data, tolerance);
}

void try_pools(Random& random) {
    const Pool pool{drawn_small(random, true), random.chance(0.5), random.chance(0.5)};
    const Values x =
        drawn(random, random.between(1, 3), pool.sliding.in.pixels(), random.between(1, 5), Grain::rounded);
    Values expected(x.images, pool.sliding.out.pixels(), x.channels,
                    pool.maximum ? -std::numeric_limits<double>::infinity() : 0.0);
    for (int n = 0; n < x.images; ++n) {
        for (int c = 0; c < x.channels; ++c) {
            std::vector<int> seen(static_cast<std::size_t>(expected.pixels));
            for_each_read(pool.sliding, [&](int to, int /*tap*/, int from) {
                if (from >= 0) {
                    double& result = expected.at(n, to, c);
                    result = pool.maximum ? std::max(result, x.at(n, from, c)) : result + x.at(n, from, c);
                }
                seen[static_cast<std::size_t>(to)] += from >= 0 || pool.count_include_pad ? 1 : 0;
            });
            for (int p = 0; p < expected.pixels && !pool.maximum; ++p) {
                expected.at(n, p, c) /= seen[static_cast<std::size_t>(p)];
            }
        }
    }
    expect_near("pooled", pooled(pool, x).data, expected.data, tolerance);
}

// Of equal maxima the first, row by row, gets the gradient.
void try_equal_maxima(Random& random) {
    const Pool pool{drawn_small(random, true), true, false};
    const Values x = drawn(random, 2, pool.sliding.in.pixels(), 3, Grain::whole);
    const Values g = drawn(random, 2, pool.sliding.out.pixels(), 3, Grain::rounded);
    Values expected(2, x.pixels, 3);
    for (int n = 0; n < 2; ++n) {
        for (int c = 0; c < 3; ++c) {
            std::vector<int> first(static_cast<std::size_t>(g.pixels), -1);
            for_each_read(pool.sliding, [&](int to, int /*tap*/, int from) {
                int& best = first[static_cast<std::size_t>(to)];
                if (from >= 0 && (best < 0 || x.at(n, from, c) > x.at(n, best, c))) {
                    best = from;
                }
            });
            for (int p = 0; p < g.pixels; ++p) {
                expected.at(n, first[static_cast<std::size_t>(p)], c) += g.at(n, p, c);
            }
        }
    }
    expect_near("gradient", pool_gradient(pool, x, g).data, expected.data, tolerance);
}

void try_activations(Random& random) {
    const Values y = drawn_eighths(random, 2, 5, 3, 9);
    const Values residual = drawn_eighths(random, 2, 5, 3, 1);
    const std::vector<double> scale = random.numbers(3, Grain::rounded);
    const std::vector<double> shift = random.numbers(3, Grain::rounded);
    for (const Activation activation :
         {Activation::none, Activation::relu, Activation::relu6, Activation::hardswish, Activation::sigmoid}) {
        Values expected = y;
        for (std::size_t i = 0; i < y.data.size(); ++i) {
            const double x = scale[i % 3] * y.data[i] + shift[i % 3] + residual.data[i];
            expected.data[i] = activation == Activation::relu        ? std::max(x, 0.0)
                               : activation == Activation::relu6     ? std::min(std::max(x, 0.0), 6.0)
                               : activation == Activation::hardswish ? x * std::min(std::max(x + 3, 0.0), 6.0) / 6
                               : activation == Activation::sigmoid   ? 1 / (1 + std::exp(-x))
                                                                     : x;
        }
        expect_near("activated", activated(y, activation, scale, shift, &residual).data, expected.data, tolerance);
    }
}

void try_moments(Random& random) {
    const Values y = drawn(random, random.between(1, 4), random.between(1, 9), random.between(1, 5), Grain::rounded);
    std::vector<double> expected(static_cast<std::size_t>(2 * y.channels));
    for (std::size_t i = 0; i < y.data.size(); ++i) {
        const std::size_t channel = i % static_cast<std::size_t>(y.channels);
        expected[channel] += y.data[i];
        expected[channel + static_cast<std::size_t>(y.channels)] += y.data[i] * y.data[i];
    }
    expect_near("moments", moments(y), expected, tolerance);
}

void try_products(Random& random) {
    const Values one = drawn(random, 3, random.between(2, 7), 2, Grain::rounded);
    const Values other = drawn(random, 3, one.pixels, 2, Grain::rounded);
    const Values single = drawn(random, 3, 1, 2, Grain::rounded);
    Values products = one;
    Values sums(3, 1, 2);
    Values spread = one;
    for (int n = 0; n < 3; ++n) {
        for (int p = 0; p < one.pixels; ++p) {
            for (int c = 0; c < 2; ++c) {
                products.at(n, p, c) = one.at(n, p, c) * other.at(n, p, c);
                sums.at(n, 0, c) += products.at(n, p, c);
                spread.at(n, p, c) = one.at(n, p, c) * single.at(n, 0, c);
            }
        }
    }
    expect_near("products", multiplied(one, other, false).data, products.data, tolerance);
    expect_near("sums", multiplied(one, other, true).data, sums.data, tolerance);
    expect_near("spread", multiplied(one, single, false).data, spread.data, tolerance);
}

// [C, H, W] to [C * H * W].
void try_flatten(Random& random) {
    const Values maps = drawn(random, 2, random.between(1, 6), random.between(1, 6), Grain::rounded);
    std::vector<std::int32_t> feature;
    Values expected(2, 1, maps.pixels * maps.channels);
    for (int p = 0; p < maps.pixels; ++p) {
        for (int c = 0; c < maps.channels; ++c) {
            feature.push_back(c * maps.pixels + p);
            for (int n = 0; n < 2; ++n) {
                expected.at(n, 0, c * maps.pixels + p) = maps.at(n, p, c);
            }
        }
    }
    const Values features = flattened(maps, feature, maps.pixels, maps.channels, false);
    expect_near("features", features.data, expected.data, 0);
    expect_near("maps", flattened(features, feature, maps.pixels, maps.channels, true).data, maps.data, 0);
}

void try_add_and_copy(Random& random) {
    const Values one = drawn(random, 3, random.between(1, 7), 4, Grain::rounded);
    const Values other = drawn(random, 3, one.pixels, 4, Grain::rounded);
    Values sum(3, one.pixels, 4, 7.0);
    plain().add({view_of(one), view_of(other), view_of(sum), one.pixels, 4, whole(one)}, 0);
    Values copied(3, one.pixels, 4, 7.0);
    plain().copy({view_of(one), view_of(copied), false, one.pixels, 4, whole(one)}, 0);
    expect_near("copy", copied.data, one.data, 0);
    plain().copy({view_of(other), view_of(copied), true, one.pixels, 4, whole(one)}, 0);
    for (std::size_t i = 0; i < sum.data.size(); ++i) {
        const double expected = one.data[i] + other.data[i];
        expect_near("sum", {sum.data[i], copied.data[i]}, {expected, expected}, 0);
    }
}

void try_packing(Random& random) {
    const int taps = random.between(1, 4);
    const std::vector<double> weights = random.numbers(6 * 7 * taps, Grain::rounded);  // [6][7][taps]
    const std::vector<std::int32_t> rows = random.survivors(random.between(1, 6), 6);
    const std::vector<std::int32_t> columns = random.survivors(random.between(1, 7), 7);
    const std::vector<double> row_scale = random.numbers(6, Grain::rounded);
    const std::vector<double> column_scale = random.numbers(7, Grain::rounded);
    const auto to = static_cast<int>(rows.size());
    const auto from = static_cast<int>(columns.size());
    std::vector<double> packed(plain().packed_size(to, from, taps));
    const Pack<double> task{weights.data(),      rows.data(), columns.data(), 7 * taps, taps,         row_scale.data(),
                            column_scale.data(), to,          from,           taps,     packed.data()};
    std::vector<double> expected;
    for (int j = 0; j < to; ++j) {
        plain().pack(task, j);
        for (int i = 0; i < from; ++i) {
            for (int tap = 0; tap < taps; ++tap) {
                const auto element = static_cast<std::size_t>(
                    (rows[static_cast<std::size_t>(j)] * 7 + columns[static_cast<std::size_t>(i)]) * taps + tap);
                expected.push_back(weights[element] * row_scale[static_cast<std::size_t>(j)] *
                                   column_scale[static_cast<std::size_t>(i)]);
            }
        }
    }
    expect_near("packed", packed, expected, tolerance);
}

// On every second row and third column of a tensor [4][6][2].
void try_sgd(Random& random) {
    std::vector<double> weights = random.numbers(48, Grain::rounded);
    std::vector<double> momentum = random.numbers(48, Grain::rounded);
    const std::vector<double> gradient = random.numbers(8, Grain::rounded);  // [2][2][2]
    const std::vector<double> scale{2.0, 0.25};
    const std::vector<std::int32_t> row{1, 3};
    const std::vector<std::int32_t> column{2, 5};
    std::vector<double> expected_weights = weights;
    std::vector<double> expected_momentum = momentum;
    for (std::size_t i = 0; i < 8; ++i) {
        const std::size_t element = (2 * (i / 4) + 1) * 12 + (3 * (i / 2 % 2) + 2) * 2 + i % 2;
        double& w = expected_weights[element];
        double& m = expected_momentum[element];
        const double g = gradient[i] * scale[i / 2 % 2] + 0.125 * w;
        m = 0.5 * m + g;
        w = w - 0.75 * m;
    }
    const SgdTask<double> task{weights.data(),  momentum.data(), 12,   row.data(), column.data(), 2, 2, 2,
                               gradient.data(), scale.data(),    0.75, 0.5,        0.125};
    plain().sgd(task, 1);
    plain().sgd(task, 0);
    expect_near("weights", weights, expected_weights, tolerance);
    expect_near("momentum", momentum, expected_momentum, tolerance);
}

}  // namespace

std::vector<PlainTest> direct_tests() {
    return {
        {"formula_of_convolution", try_convolution},
        {"formula_of_depthwise", try_depthwise},
        {"formulas_of_pools", try_pools},
        {"formula_of_equal_maxima", try_equal_maxima},
        {"formulas_of_activations", try_activations},
        {"formula_of_moments", try_moments},
        {"formulas_of_products", try_products},
        {"formula_of_flatten", try_flatten},
        {"formulas_of_add_and_copy", try_add_and_copy},
        {"formula_of_packing", try_packing},
        {"formula_of_sgd", try_sgd},
    };
}

}  // namespace distreal::held
