#pragma once
// The plain kernels in double precision, called on whole values with as few words as possible.

#include <vector>

#include "values.hpp"
#include "windows.hpp"

namespace distreal::held {

inline View<double> view_of(Values& values) {
    return {values.data.data(), static_cast<std::ptrdiff_t>(values.pixels) * values.channels, values.channels};
}

inline View<const double> view_of(const Values& values) { return view_of(const_cast<Values&>(values)).as_const(); }

inline Cut whole(const Values& values) { return {values.images, values.images, 1}; }

inline const Kernels<double>& plain() { return plain_kernels<double>(); }

// weights: [to][from][taps], or [from][to][taps] when transposed.
inline std::vector<double> packed(const std::vector<double>& weights, int to_channels, int from_channels, int taps,
                                  bool transposed) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(to_channels + from_channels));
    std::iota(all.begin(), all.end(), 0);
    std::vector<double> made(plain().packed_size(to_channels, from_channels, taps));
    const Pack<double> task{.weights = weights.data(),
                            .to_index = all.data(),
                            .from_index = all.data(),
                            .to_stride = transposed ? taps : from_channels * taps,
                            .from_stride = transposed ? to_channels * taps : taps,
                            .to_scale = nullptr,
                            .from_scale = nullptr,
                            .to_channels = to_channels,
                            .from_channels = from_channels,
                            .taps = taps,
                            .packed = made.data()};
    for (int unit = 0; unit < plain().pack_units(task); ++unit) {
        plain().pack(task, unit);
    }
    return made;
}

// weights: [out][in][taps]. Backward: `from` is the gradient of the output.
inline Values convolved(const Sliding& sliding, const Values& from, const std::vector<double>& weights, int to_channels,
                        bool backward, const std::vector<double>& bias = {},
                        const ThroughActivation<double>* through = nullptr) {
    const Gather gather = backward ? backward_gather(sliding.window, sliding.in, sliding.out)
                                   : forward_gather(sliding.window, sliding.in, sliding.out);
    const std::vector<double> matrix = packed(weights, to_channels, from.channels, gather.taps, backward);
    Values to(from.images, gather.to.pixels(), to_channels);
    const GatherTask<double> task{.gather = &gather,
                                  .from = view_of(from),
                                  .to = view_of(to),
                                  .from_channels = from.channels,
                                  .to_channels = to_channels,
                                  .packed = matrix.data(),
                                  .bias = bias.empty() ? nullptr : bias.data(),
                                  .accumulate = false,
                                  .cut = whole(from),
                                  .moments = nullptr,
                                  .live = nullptr,
                                  .through = through};
    plain().gather(task, 0);
    return to;
}

inline std::vector<double> weight_gradient(const Sliding& sliding, const Values& in, const Values& gradient) {
    const TapRuns runs = tap_runs(sliding.window, sliding.in, sliding.out);
    std::vector<double> result(static_cast<std::size_t>(gradient.channels * in.channels * sliding.window.taps()));
    const WeightGradientTask<double> task{.window = &sliding.window,
                                          .runs = &runs,
                                          .in = view_of(in),
                                          .gradient = view_of(gradient),
                                          .in_channels = in.channels,
                                          .out_channels = gradient.channels,
                                          .blocks = in.images,
                                          .parts = 1,
                                          .result = result.data()};
    std::vector<double> scratch(plain().weight_gradient_scratch(task));
    for (int unit = 0; unit < plain().weight_gradient_units(task); ++unit) {
        plain().weight_gradient(task, unit, scratch.data());
    }
    return result;
}

// Every input channel has `multiplier` outputs. Backward: `from` is the gradient of the output.
inline Values depthwise_convolved(const Sliding& sliding, const Values& from, const std::vector<double>& weights,
                                  int multiplier, bool backward, const std::vector<double>& bias = {}) {
    const Gather gather = backward ? backward_gather(sliding.window, sliding.in, sliding.out)
                                   : forward_gather(sliding.window, sliding.in, sliding.out);
    const int in_channels = backward ? from.channels / multiplier : from.channels;
    std::vector<std::int32_t> partner;
    std::vector<std::int32_t> first{0};
    for (int i = 0; i < in_channels; ++i) {
        partner.insert(partner.end(), static_cast<std::size_t>(multiplier), i);
        first.push_back(first.back() + multiplier);
    }
    Values to(from.images, gather.to.pixels(), backward ? in_channels : in_channels * multiplier);
    const DepthwiseTask<double> task{.window = &sliding.window,
                                     .gather = &gather,
                                     .from = view_of(from),
                                     .to = view_of(to),
                                     .from_channels = from.channels,
                                     .to_channels = to.channels,
                                     .partner = backward ? nullptr : partner.data(),
                                     .first = backward ? first.data() : nullptr,
                                     .weights = weights.data(),
                                     .bias = bias.empty() ? nullptr : bias.data(),
                                     .accumulate = false,
                                     .cut = whole(from),
                                     .moments = nullptr,
                                     .live = nullptr,
                                     .through = nullptr};
    backward ? plain().depthwise_backward(task, 0) : plain().depthwise_forward(task, 0);
    return to;
}

inline std::vector<double> depthwise_weight_gradient(const Sliding& sliding, const Values& in, const Values& gradient) {
    const TapRuns runs = tap_runs(sliding.window, sliding.in, sliding.out);
    std::vector<std::int32_t> partner;
    for (int o = 0; o < gradient.channels; ++o) {
        partner.push_back(o / (gradient.channels / in.channels));
    }
    std::vector<double> result(static_cast<std::size_t>(gradient.channels * sliding.window.taps()));
    const DepthwiseWeightTask<double> task{.window = &sliding.window,
                                           .runs = &runs,
                                           .in = view_of(in),
                                           .gradient = view_of(gradient),
                                           .partner = partner.data(),
                                           .out_channels = gradient.channels,
                                           .blocks = in.images,
                                           .parts = 1,
                                           .result = result.data()};
    for (int unit = 0; unit < plain().depthwise_weight_units(task); ++unit) {
        plain().depthwise_weight(task, unit);
    }
    return result;
}

inline Values activated(const Values& y, Activation activation, const std::vector<double>& scale = {},
                        const std::vector<double>& shift = {}, const Values* residual = nullptr) {
    Values out = y;
    const View<const double> residual_view = residual == nullptr ? View<const double>{} : view_of(*residual);
    const ActivateTask<double> task{.y = view_of(y),
                                    .scale = scale.empty() ? nullptr : scale.data(),
                                    .shift = scale.empty() ? nullptr : shift.data(),
                                    .residual = residual == nullptr ? nullptr : &residual_view,
                                    .activation = activation,
                                    .out = view_of(out),
                                    .pixels = y.pixels,
                                    .channels = y.channels,
                                    .cut = whole(y)};
    plain().activate(task, 0);
    return out;
}

// The sums of y and of y * y by channel.
inline std::vector<double> moments(const Values& y) {
    std::vector<double> sums(static_cast<std::size_t>(2 * y.channels));
    const MomentsTask<double> task{.y = view_of(y),
                                   .pixels = y.pixels,
                                   .channels = y.channels,
                                   .cut = whole(y),
                                   .live = nullptr,
                                   .squares = true,
                                   .moments = sums.data()};
    plain().moments(task, 0);
    return sums;
}

inline Values multiplied(const Values& one, const Values& other, bool reduce) {
    Values to(one.images, reduce ? 1 : one.pixels, one.channels);
    const MultiplyTask<double> task{.one = view_of(one),
                                    .other = view_of(other),
                                    .other_is_single = other.pixels == 1 && !reduce,
                                    .reduce = reduce,
                                    .to = view_of(to),
                                    .accumulate = false,
                                    .pixels = one.pixels,
                                    .channels = one.channels,
                                    .cut = whole(one)};
    plain().multiply(task, 0);
    return to;
}

struct Pool {
    Sliding sliding;
    bool maximum;
    bool count_include_pad;
};

inline Values pooled(const Pool& pool, const Values& in) {
    const Gather gather = forward_gather(pool.sliding.window, pool.sliding.in, pool.sliding.out);
    Values out(in.images, pool.sliding.out.pixels(), in.channels);
    const PoolTask<double> task{.gather = &gather,
                                .window = &pool.sliding.window,
                                .maximum = pool.maximum,
                                .count_include_pad = pool.count_include_pad,
                                .in = view_of(in),
                                .out = view_of(out),
                                .gradient = {},
                                .in_gradient = {},
                                .accumulate = false,
                                .channels = in.channels,
                                .cut = whole(in)};
    plain().pool_forward(task, 0);
    return out;
}

inline Values pool_gradient(const Pool& pool, const Values& in, const Values& gradient) {
    const Gather gather = forward_gather(pool.sliding.window, pool.sliding.in, pool.sliding.out);
    Values in_gradient(in.images, in.pixels, in.channels);
    const PoolTask<double> task{.gather = &gather,
                                .window = &pool.sliding.window,
                                .maximum = pool.maximum,
                                .count_include_pad = pool.count_include_pad,
                                .in = view_of(in),
                                .out = {},
                                .gradient = view_of(gradient),
                                .in_gradient = view_of(in_gradient),
                                .accumulate = false,
                                .channels = in.channels,
                                .cut = whole(in)};
    plain().pool_backward(task, 0);
    return in_gradient;
}

inline Values flattened(const Values& from, const std::vector<std::int32_t>& feature, int pixels, int channels,
                        bool backward) {
    Values to(from.images, backward ? pixels : 1, backward ? channels : pixels * channels);
    const FlattenTask<double> task{.from = view_of(from),
                                   .to = view_of(to),
                                   .backward = backward,
                                   .accumulate = false,
                                   .feature = feature.data(),
                                   .pixels = pixels,
                                   .channels = channels,
                                   .cut = whole(from)};
    plain().flatten(task, 0);
    return to;
}

inline void expect_near(const char* name, const std::vector<double>& got, const std::vector<double>& expected,
                        double tolerance) {
    if (got.size() != expected.size()) {
        throw Failure{std::string(name) + ": " + std::to_string(got.size()) + " numbers instead of " +
                      std::to_string(expected.size())};
    }
    for (std::size_t i = 0; i < got.size(); ++i) {
        if (!(std::abs(got[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])))) {
            throw Failure{std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(got[i]) +
                          " instead of " + std::to_string(expected[i])};
        }
    }
}

}  // namespace distreal::held
