#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/depthwise_weight_tile.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

DISTREAL_INLINE int channel_chunks(const DepthwiseWeightTask<float>& task) {
    return (task.out_channels + channels_of_weight_unit - 1) / channels_of_weight_unit;
}

// A unit is a part of the images and rows, and there some channels.
inline int depthwise_weight_units(const DepthwiseWeightTask<float>& task) { return task.parts * channel_chunks(task); }

struct WeightShare {
    int part;
    int first;  // channel
    int count;
};

DISTREAL_INLINE WeightShare weight_share(const DepthwiseWeightTask<float>& task, int unit) {
    const int chunks = channel_chunks(task);
    const int first = unit % chunks * channels_of_weight_unit;
    const int rest = task.out_channels - first;
    return {unit / chunks, first, rest < channels_of_weight_unit ? rest : channels_of_weight_unit};
}

DISTREAL_INLINE std::int64_t pixels_reached(const TapRuns& runs) {
    std::int64_t pixels = 0;
    for (std::size_t tap = 0; tap < runs.of_tap.size(); ++tap) {
        const std::size_t count = runs.of_tap.data()[tap].size();
        if (count > 0) {
            const Run& last = runs.of_tap.data()[tap].data()[count - 1];
            const std::int64_t end = static_cast<std::int64_t>(last.out) + last.count;
            pixels = end > pixels ? end : pixels;
        }
    }
    return pixels;
}

// The sum of products of n channels along one run.
template <int n>
DISTREAL_INLINE void add_run(const DepthwiseWeightTask<float>& task, const Run& run, int block, int first,
                             Vector (&sums)[n]) {
    const float* gradient = at(task.gradient, block, run.out) + static_cast<std::ptrdiff_t>(first) * lanes;
    const float* in[n];
    for (int c = 0; c < n; ++c) {
        in[c] = at(task.in, block, run.in) + static_cast<std::ptrdiff_t>(task.partner[first + c]) * lanes;
    }
    std::ptrdiff_t in_at = 0;
    for (int pixel = 0; pixel < run.count; ++pixel) {
        DISTREAL_UNROLL
        for (int c = 0; c < n; ++c) {
            sums[c] = multiply_add(load(gradient + c * lanes), load(in[c] + in_at), sums[c]);
        }
        gradient += task.gradient.pixel_stride;
        in_at += run.in_step * task.in.pixel_stride;
    }
}

// All taps of n channels. A run belongs to the part in which it begins.
template <int n>
DISTREAL_INLINE void weigh_channels(const DepthwiseWeightTask<float>& task, std::int64_t begin, std::int64_t end,
                                    std::int64_t pixels, int first, float* result) {
    const int taps = task.window->taps();
    for (int tap = 0; tap < taps; ++tap) {
        const Run* const runs = task.runs->of_tap.data()[tap].data();
        const auto count = static_cast<int>(task.runs->of_tap.data()[tap].size());
        Vector sums[n] = {};
        for (int block = 0; block < task.blocks; ++block) {
            for (int r = 0; r < count; ++r) {
                const std::int64_t position = block * pixels + runs[r].out;
                if (begin <= position && position < end) {
                    add_run<n>(task, runs[r], block, first, sums);
                }
            }
        }
        for (int c = 0; c < n; ++c) {
            result[c * taps + tap] = sum_of_lanes(sums[c]);
        }
    }
}

// Any window, run by run.
inline void weigh_runs(const DepthwiseWeightTask<float>& task, const WeightShare& share, float* result) {
    const std::int64_t pixels = pixels_reached(*task.runs);
    const std::int64_t begin = task.blocks * pixels * share.part / task.parts;
    const std::int64_t end = task.blocks * pixels * (share.part + 1) / task.parts;
    const int taps = task.window->taps();
    int c = 0;
    for (; c + 4 <= share.count; c += 4) {
        weigh_channels<4>(task, begin, end, pixels, share.first + c, result + c * taps);
    }
    for (; c < share.count; ++c) {
        weigh_channels<1>(task, begin, end, pixels, share.first + c, result + c * taps);
    }
}

inline void depthwise_weight(const DepthwiseWeightTask<float>& task, int unit) {
    const WeightShare share = weight_share(task, unit);
    const std::ptrdiff_t taps = task.window->taps();
    float* const result =
        task.result + (static_cast<std::ptrdiff_t>(share.part) * task.out_channels + share.first) * taps;
    const int stride = tile_stride(*task.window);
    if (stride == 1) {
        weigh_tiles<1>(task, weight_plane(task), share.part, share.first, share.count, result);
    } else if (stride == 2) {
        weigh_tiles<2>(task, weight_plane(task), share.part, share.first, share.count, result);
    } else {
        weigh_runs(task, share, result);
    }
}

}  // namespace distreal::DISTREAL_SIMD
