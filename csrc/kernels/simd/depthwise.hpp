#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/depthwise_weight.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// What is behind the sum over taps: bias, what was there before, the derivative of the activation, and sums.
struct DepthwiseEnd {
    Vector live;
    Vector lower;  // between these bounds of its input, the activation's derivative is 1
    Vector upper;
};

DISTREAL_INLINE DepthwiseEnd depthwise_end(const DepthwiseTask<float>& task, int block) {
    const float infinity = __builtin_inff();
    DepthwiseEnd end{live_lanes(task.live, block), spread(-infinity), spread(infinity)};
    if (task.through != nullptr && task.through->activation != Activation::none) {
        end.lower = Vector{};
        end.upper = task.through->activation == Activation::relu6 ? spread(6.0F) : end.upper;
    }
    return end;
}

// Ends the values of channel c, which is number `slot` of the sums, at n pixels.
template <int n>
DISTREAL_INLINE void finish(const DepthwiseTask<float>& task, const DepthwiseEnd& end, ChannelSums& sums, int c,
                            int slot, int block, const int (&pixel)[n], Vector (&value)[n]) {
    const std::ptrdiff_t here = static_cast<std::ptrdiff_t>(c) * lanes;
    if (task.bias != nullptr) {
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            value[i] += spread(task.bias[c]);
        }
    }
    if (task.accumulate) {
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            value[i] += load(at(task.to, block, pixel[i]) + here);
        }
    }
    if (task.through != nullptr) {
        const ThroughActivation<float>& through = *task.through;
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            const Vector y = load(at(through.y, block, pixel[i]) + here);
            const Vector before = multiply_add(y, spread(through.scale[c]), spread(through.shift[c]));
            value[i] = before <= end.lower ? Vector{} : value[i];
            value[i] = before >= end.upper ? Vector{} : value[i];
            sums.first[slot] += value[i];
            sums.second[slot] = multiply_add(value[i], y - spread(through.mean[c]), sums.second[slot]);
        }
    } else if (task.moments != nullptr) {
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            const Vector counted = value[i] * end.live;
            sums.first[slot] += counted;
            sums.second[slot] = multiply_add(counted, value[i], sums.second[slot]);
        }
    }
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        store(at(task.to, block, pixel[i]) + here, value[i]);
    }
}

// The channels that channel c of the result reads, and the first of their weights.
struct Reads {
    int first;
    int end;
};

DISTREAL_INLINE Reads reads_of(const DepthwiseTask<float>& task, int c) {
    if (task.first != nullptr) {
        return {task.first[c], task.first[c + 1]};
    }
    return {c, c + 1};
}

DISTREAL_INLINE int channel_read(const DepthwiseTask<float>& task, int reading) {
    return task.first != nullptr ? reading : task.partner[reading];
}

// n positions of one class.
template <int n>
DISTREAL_INLINE void depthwise_positions(const DepthwiseTask<float>& task, const TapClass& of_class,
                                         const DepthwiseEnd& end, ChannelSums& sums, int first_channel, int channels,
                                         int block, const Position* positions) {
    const float* from[n];
    int pixel[n];
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        from[i] = at(task.from, block, positions[i].from);
        pixel[i] = positions[i].to;
    }
    const Tap* const taps = of_class.taps.data();
    const int tap_count = static_cast<int>(of_class.taps.size());
    for (int slot = 0; slot < channels; ++slot) {
        const int c = first_channel + slot;
        Vector value[n] = {};
        const Reads reads = reads_of(task, c);
        for (int reading = reads.first; reading < reads.end; ++reading) {
            const std::ptrdiff_t channel = static_cast<std::ptrdiff_t>(channel_read(task, reading)) * lanes;
            const float* const weights = task.weights + static_cast<std::ptrdiff_t>(reading) * task.gather->taps;
            for (int t = 0; t < tap_count; ++t) {
                const Vector weight = spread(weights[taps[t].index]);
                const std::ptrdiff_t offset = taps[t].offset * task.from.pixel_stride + channel;
                DISTREAL_UNROLL
                for (int i = 0; i < n; ++i) {
                    value[i] = multiply_add(weight, load(from[i] + offset), value[i]);
                }
            }
        }
        finish<n>(task, end, sums, c, slot, block, pixel, value);
    }
}

DISTREAL_INLINE void depthwise_class(const DepthwiseTask<float>& task, const TapClass& of_class,
                                     const DepthwiseEnd& end, ChannelSums& sums, int first_channel, int channels,
                                     int block, Span span) {
    const Position* const positions = of_class.positions.data();
    int p = span.begin;
    for (; p + 4 <= span.end; p += 4) {
        depthwise_positions<4>(task, of_class, end, sums, first_channel, channels, block, positions + p);
    }
    for (; p < span.end; ++p) {
        depthwise_positions<1>(task, of_class, end, sums, first_channel, channels, block, positions + p);
    }
}

inline void depthwise(const DepthwiseTask<float>& task, int unit) {
    const Share share = share_of(task.cut, unit);
    float* const to = task.through != nullptr ? task.through->sums : task.moments;
    with_sums(to, unit, task.to_channels, true, [&](ChannelSums& sums, int first, int count) DISTREAL_INLINE_LAMBDA {
        for (int block = share.first_block; block < share.end_block; ++block) {
            const DepthwiseEnd end = depthwise_end(task, block);
            for (std::size_t i = 0; i < task.gather->classes.size(); ++i) {
                const TapClass& of_class = task.gather->classes.data()[i];
                const Span span = band_of(of_class.positions.size(), task.cut, share.band);
                depthwise_class(task, of_class, end, sums, first, count, block, span);
            }
        }
    });
}

inline void depthwise_forward(const DepthwiseTask<float>& task, int unit) { depthwise(task, unit); }
inline void depthwise_backward(const DepthwiseTask<float>& task, int unit) { depthwise(task, unit); }

}  // namespace distreal::DISTREAL_SIMD
