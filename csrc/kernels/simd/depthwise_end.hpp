#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// What stands behind a depthwise convolution's sum over taps: bias, what was there before, the derivative of the
// activation, sums by channel.
struct DepthwiseEnd {
    Vector live;
    Vector lower;  // between these bounds of its input, the activation's derivative is 1, and elsewhere 0
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

// Pixels anywhere, by their distance from the first pixel of the plane.
template <int n>
struct ScatteredPixels {
    int pixel[n];

    DISTREAL_INLINE std::ptrdiff_t at(int i, std::ptrdiff_t pixel_stride) const { return pixel[i] * pixel_stride; }
};

// A rectangle of pixels, row by row.
template <int columns>
struct TiledPixels {
    int first;
    int width;  // of the plane

    DISTREAL_INLINE std::ptrdiff_t at(int i, std::ptrdiff_t pixel_stride) const {
        return first * pixel_stride + i / columns * (width * pixel_stride) + i % columns * pixel_stride;
    }
};

// A channel's two sums, each as two chains, so that additions wait for one another half as long.
struct SumChains {
    Vector first[2];
    Vector second[2];

    DISTREAL_INLINE void add(int i, Vector value, Vector factor) {
        first[i % 2] += value;
        second[i % 2] = multiply_add(value, factor, second[i % 2]);
    }
};

DISTREAL_INLINE SumChains chains_of(const ChannelSums& sums, int slot) {
    return {{sums.first[slot], Vector{}}, {sums.second[slot], Vector{}}};
}

DISTREAL_INLINE void keep(ChannelSums& sums, int slot, const SumChains& chains) {
    sums.first[slot] = chains.first[0] + chains.first[1];
    sums.second[slot] = chains.second[0] + chains.second[1];
}

// Ends the values of channel c at n pixels; `slot` is the channel's place in the sums.
template <int n, class Pixels>
DISTREAL_INLINE void finish(const DepthwiseTask<float>& task, const DepthwiseEnd& end, ChannelSums& sums, int c,
                            int slot, int block, const Pixels& pixels, Vector (&value)[n]) {
    const std::ptrdiff_t here = static_cast<std::ptrdiff_t>(c) * lanes;
    float* const to = at(task.to, block, 0) + here;
    if (task.bias != nullptr) {
        const Vector bias = spread(task.bias[c]);
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            value[i] += bias;
        }
    }
    if (task.accumulate) {
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            value[i] += load(to + pixels.at(i, task.to.pixel_stride));
        }
    }
    if (task.through != nullptr) {
        const ThroughActivation<float>& through = *task.through;
        const float* const y = at(through.y, block, 0) + here;
        const Vector scale = spread(through.scale[c]);
        const Vector shift = spread(through.shift[c]);
        const Vector mean = spread(through.mean[c]);
        SumChains chains = chains_of(sums, slot);
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            const Vector given = load(y + pixels.at(i, through.y.pixel_stride));
            const Vector before = multiply_add(given, scale, shift);
            value[i] = before <= end.lower ? Vector{} : value[i];
            value[i] = before >= end.upper ? Vector{} : value[i];
            chains.add(i, value[i], given - mean);
        }
        keep(sums, slot, chains);
    } else if (task.moments != nullptr) {
        SumChains chains = chains_of(sums, slot);
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            chains.add(i, value[i] * end.live, value[i]);
        }
        keep(sums, slot, chains);
    }
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        store(to + pixels.at(i, task.to.pixel_stride), value[i]);
    }
}

// Which channels of `from` channel c of the result is summed over, each with weights of its own: forward it is one.
struct Readings {
    int begin;
    int end;
};

DISTREAL_INLINE Readings readings_of(const DepthwiseTask<float>& task, int c) {
    if (task.first != nullptr) {
        return {task.first[c], task.first[c + 1]};
    }
    return {c, c + 1};
}

DISTREAL_INLINE std::ptrdiff_t channel_read(const DepthwiseTask<float>& task, int reading) {
    return static_cast<std::ptrdiff_t>(task.first != nullptr ? reading : task.partner[reading]) * lanes;
}

}  // namespace distreal::DISTREAL_SIMD
