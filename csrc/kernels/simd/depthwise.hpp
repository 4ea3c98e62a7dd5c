#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/depthwise_end.hpp"
#include "kernels/simd/depthwise_tile.hpp"
#include "kernels/simd/depthwise_weight.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// n positions of one class.
template <int n>
DISTREAL_INLINE void gather_positions(const DepthwiseTask<float>& task, const TapClass& of_class,
                                      const DepthwiseEnd& end, ChannelSums& sums, int first_channel, int channels,
                                      int block, const Position* positions) {
    const float* from[n];
    ScatteredPixels<n> pixels;
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        from[i] = at(task.from, block, positions[i].from);
        pixels.pixel[i] = positions[i].to;
    }
    const Tap* const taps = of_class.taps.data();
    const int tap_count = static_cast<int>(of_class.taps.size());
    for (int slot = 0; slot < channels; ++slot) {
        const int c = first_channel + slot;
        Vector value[n] = {};
        const Readings readings = readings_of(task, c);
        for (int reading = readings.begin; reading < readings.end; ++reading) {
            const std::ptrdiff_t channel = channel_read(task, reading);
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
        finish<n>(task, end, sums, c, slot, block, pixels, value);
    }
}

inline void gather_band(const DepthwiseTask<float>& given, const DepthwiseEnd& end, ChannelSums& sums,
                        int first_channel, int channels, int block, int band) {
    const DepthwiseTask<float> task = given;
    for (std::size_t i = 0; i < task.gather->classes.size(); ++i) {
        const TapClass& of_class = task.gather->classes.data()[i];
        const Span span = band_of(of_class.positions.size(), task.cut, band);
        const Position* const positions = of_class.positions.data();
        int p = span.begin;
        for (; p + 4 <= span.end; p += 4) {
            gather_positions<4>(task, of_class, end, sums, first_channel, channels, block, positions + p);
        }
        for (; p < span.end; ++p) {
            gather_positions<1>(task, of_class, end, sums, first_channel, channels, block, positions + p);
        }
    }
}

DISTREAL_INLINE void depthwise(const DepthwiseTask<float>& task, bool backward, int unit) {
    const Share share = share_of(task.cut, unit);
    const int stride = tile_stride(*task.window);
    const int step = backward && stride == 2 ? -2 : stride;
    float* const to = task.through != nullptr ? task.through->sums : task.moments;
    with_sums(to, unit, task.to_channels, true, [&](ChannelSums& sums, int first, int count) DISTREAL_INLINE_LAMBDA {
        for (int block = share.first_block; block < share.end_block; ++block) {
            const DepthwiseEnd end = depthwise_end(task, block);
            if (step == 0) {
                gather_band(task, end, sums, first, count, block, share.band);
            } else {
                make_band(step, {&task, &end, &sums, first, count, block, backward && step == 1}, share.band);
            }
        }
    });
}

inline void depthwise_forward(const DepthwiseTask<float>& task, int unit) { depthwise(task, false, unit); }
inline void depthwise_backward(const DepthwiseTask<float>& task, int unit) { depthwise(task, true, unit); }

}  // namespace distreal::DISTREAL_SIMD
