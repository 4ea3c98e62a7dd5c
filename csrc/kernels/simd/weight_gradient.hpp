#pragma once
// Convolution, backward-weights: dot products over pixels and images, vectors of images by vectors of images.

#include <cstddef>

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

inline int weight_gradient_units(const WeightGradientTask<float>& task) {
    return task.parts * ((task.out_channels + 3) / 4);
}

inline std::size_t weight_gradient_scratch(const WeightGradientTask<float>& /*task*/) { return 64; }

inline void weight_gradient(const WeightGradientTask<float>& task, int unit, float* /*scratch*/) {
    const int groups = (task.out_channels + 3) / 4;
    const int part = unit / groups;
    const int first = unit % groups * 4;
    const int taps = task.window->taps();
    for (int o = first; o < task.out_channels && o < first + 4; ++o) {
        for (int i = 0; i < task.in_channels; ++i) {
            for (int t = 0; t < taps; ++t) {
                const auto& runs = task.runs->of_tap[static_cast<std::size_t>(t)];
                const auto count = static_cast<std::int64_t>(runs.size()) * task.blocks;
                Vector sum{};
                for (std::int64_t j = count * part / task.parts; j < count * (part + 1) / task.parts; ++j) {
                    const int block = static_cast<int>(j / static_cast<std::int64_t>(runs.size()));
                    const Run& run = runs[static_cast<std::size_t>(j) % runs.size()];
                    for (int p = 0; p < run.count; ++p) {
                        sum = multiply_add(load(at(task.gradient, block, run.out + p) + o * lanes),
                                           load(at(task.in, block, run.in + p * run.in_step) + i * lanes), sum);
                    }
                }
                const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(part) * task.out_channels + o;
                task.result[(row * task.in_channels + i) * taps + t] = sum_of_lanes(sum);
            }
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
