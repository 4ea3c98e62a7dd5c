#pragma once
// How the weights of a convolution lie while its gathers run: [block of outputs][tap][input][output of the block].

#include <cstddef>

#include "kernels/kernels.hpp"
#include "kernels/simd/multiply.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// NEON reads whole vectors of numbers, which must all exist.
DISTREAL_INLINE constexpr int padded_outputs(int outputs) {
    return (outputs + numbers_at_once - 1) / numbers_at_once * numbers_at_once;
}

// Blocks as equal as can be: 13 outputs are 7 and 6, for 8 and 5 would work with fewer registers in the second.
struct OutputBlocks {
    int outputs;
    int count;

    DISTREAL_INLINE int begin(int block) const { return part_begin(outputs, block, count); }
    DISTREAL_INLINE int size(int block) const { return begin(block + 1) - begin(block); }
};

DISTREAL_INLINE OutputBlocks output_blocks(int outputs) {
    return {outputs, (outputs + most_numbers - 1) / most_numbers};
}

// Elements of packed weights before a block.
DISTREAL_INLINE std::ptrdiff_t packed_begin(const OutputBlocks& blocks, int block, int from_channels, int taps) {
    std::ptrdiff_t outputs = blocks.begin(block);
    if constexpr (numbers_at_once > 1) {
        outputs = 0;
        for (int before = 0; before < block; ++before) {
            outputs += padded_outputs(blocks.size(before));
        }
    }
    return outputs * from_channels * taps;
}

inline std::size_t packed_size(int to_channels, int from_channels, int taps) {
    const OutputBlocks blocks = output_blocks(to_channels);
    return static_cast<std::size_t>(packed_begin(blocks, blocks.count, from_channels, taps));
}

inline int pack_units(const Pack<float>& task) { return output_blocks(task.to_channels).count; }

// A unit is one block of outputs.
inline void pack(const Pack<float>& task, int unit) {
    const OutputBlocks blocks = output_blocks(task.to_channels);
    const int first = blocks.begin(unit);
    const int size = blocks.size(unit);
    const int padded = padded_outputs(size);
    const std::ptrdiff_t tap_step = static_cast<std::ptrdiff_t>(task.from_channels) * padded;
    std::ptrdiff_t rows[most_numbers];
    float scales[most_numbers];
    for (int o = 0; o < size; ++o) {
        rows[o] = task.to_index[first + o] * task.to_stride;
        scales[o] = task.to_scale == nullptr ? 1.0F : task.to_scale[first + o];
    }
    float* to = task.packed + packed_begin(blocks, unit, task.from_channels, task.taps);
    for (int i = 0; i < task.from_channels; ++i, to += padded) {
        const float* const from = task.weights + task.from_index[i] * task.from_stride;
        const float scale = task.from_scale == nullptr ? 1.0F : task.from_scale[i];
        for (int o = 0; o < size; ++o) {
            const float both = scales[o] * scale;
            for (int tap = 0; tap < task.taps; ++tap) {
                to[tap * tap_step + o] = from[rows[o] + tap] * both;
            }
        }
        for (int tap = 0; size < padded && tap < task.taps; ++tap) {
            for (int o = size; o < padded; ++o) {
                to[tap * tap_step + o] = 0.0F;
            }
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
