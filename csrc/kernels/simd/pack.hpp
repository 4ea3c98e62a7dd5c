#pragma once
// How the weights of a convolution lie while its gathers run: [block of outputs][tap][input][output of the block].

#include <cstddef>
#include <cstdint>

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

// Four floats, whatever the instruction set: blocks of outputs are short.
using Quad = float __attribute__((vector_size(16)));
using UnalignedQuad = float __attribute__((vector_size(16), aligned(4), may_alias));

DISTREAL_INLINE Quad load_quad(const float* from) { return *reinterpret_cast<const UnalignedQuad*>(from); }
DISTREAL_INLINE void store_quad(float* to, Quad value) { *reinterpret_cast<UnalignedQuad*>(to) = value; }

DISTREAL_INLINE void transpose(Quad (&rows)[4]) {
    const Quad a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
    const Quad b = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
    const Quad c = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const Quad d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    rows[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    rows[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    rows[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Calls body(begin) for ranges of four that cover 0..count-1, the last one overlapping the one before; count >= 4.
template <class Body>
DISTREAL_INLINE void for_fours(int count, Body body) {
    for (int begin = 0; begin < count; begin += 4) {
        body(begin + 4 <= count ? begin : count - 4);
    }
}

// A block of outputs to be packed.
struct PackBlock {
    const Pack<float>& task;
    float* to;
    int first;
    int size;
    int padded;
    std::ptrdiff_t tap_step;
    std::ptrdiff_t rows[most_numbers];  // where the outputs' weights begin
    float scales[most_numbers];
};

DISTREAL_INLINE bool consecutive(const std::int32_t* indices, int count) {
    for (int i = 1; i < count; ++i) {
        if (indices[i] != indices[0] + i) {
            return false;
        }
    }
    return true;
}

DISTREAL_INLINE float from_scale(const Pack<float>& task, int i) {
    return task.from_scale == nullptr ? 1.0F : task.from_scale[i];
}

DISTREAL_INLINE void pack_one_by_one(const PackBlock& block) {
    const Pack<float>& task = block.task;
    float* to = block.to;
    for (int i = 0; i < task.from_channels; ++i, to += block.padded) {
        const float* const from = task.weights + task.from_index[i] * task.from_stride;
        for (int o = 0; o < block.size; ++o) {
            const float scale = block.scales[o] * from_scale(task, i);
            for (int tap = 0; tap < task.taps; ++tap) {
                to[tap * block.tap_step + o] = from[block.rows[o] + tap] * scale;
            }
        }
    }
}

// Four outputs by four taps at a time.
DISTREAL_INLINE void pack_taps(const PackBlock& block) {
    const Pack<float>& task = block.task;
    float* to = block.to;
    for (int i = 0; i < task.from_channels; ++i, to += block.padded) {
        const float* const from = task.weights + task.from_index[i] * task.from_stride;
        for_fours(block.size, [&](int o) DISTREAL_INLINE_LAMBDA {
            const Quad scale = load_quad(block.scales + o) * from_scale(task, i);
            for_fours(task.taps, [&](int tap) DISTREAL_INLINE_LAMBDA {
                Quad rows[4];
                DISTREAL_UNROLL
                for (int r = 0; r < 4; ++r) {
                    rows[r] = load_quad(from + block.rows[o + r] + tap);
                }
                transpose(rows);
                DISTREAL_UNROLL
                for (int t = 0; t < 4; ++t) {
                    store_quad(to + (tap + t) * block.tap_step + o, rows[t] * scale);
                }
            });
        });
    }
}

// One tap, neighbouring inputs: four outputs by four inputs at a time.
DISTREAL_INLINE void pack_inputs(const PackBlock& block) {
    const Pack<float>& task = block.task;
    const float* const from = task.weights + task.from_index[0];
    for_fours(task.from_channels, [&](int i) DISTREAL_INLINE_LAMBDA {
        for_fours(block.size, [&](int o) DISTREAL_INLINE_LAMBDA {
            const Quad scale = load_quad(block.scales + o);
            Quad rows[4];
            DISTREAL_UNROLL
            for (int r = 0; r < 4; ++r) {
                rows[r] = load_quad(from + block.rows[o + r] + i);
            }
            transpose(rows);
            DISTREAL_UNROLL
            for (int k = 0; k < 4; ++k) {
                store_quad(block.to + static_cast<std::ptrdiff_t>(i + k) * block.padded + o,
                           rows[k] * (scale * from_scale(task, i + k)));
            }
        });
    });
}

// One tap, neighbouring outputs: rows as they are.
DISTREAL_INLINE void pack_rows(const PackBlock& block) {
    const Pack<float>& task = block.task;
    float* to = block.to;
    for (int i = 0; i < task.from_channels; ++i, to += block.padded) {
        const float* const from = task.weights + task.from_index[i] * task.from_stride + block.rows[0];
        for_fours(block.size, [&](int o) DISTREAL_INLINE_LAMBDA {
            store_quad(to + o, load_quad(from + o) * (load_quad(block.scales + o) * from_scale(task, i)));
        });
    }
}

// A unit is one block of outputs.
inline void pack(const Pack<float>& task, int unit) {
    const OutputBlocks blocks = output_blocks(task.to_channels);
    const int size = blocks.size(unit);
    const int padded = padded_outputs(size);
    PackBlock block{task,
                    task.packed + packed_begin(blocks, unit, task.from_channels, task.taps),
                    blocks.begin(unit),
                    size,
                    padded,
                    static_cast<std::ptrdiff_t>(task.from_channels) * padded,
                    {},
                    {}};
    for (int o = 0; o < size; ++o) {
        block.rows[o] = task.to_index[block.first + o] * task.to_stride;
        block.scales[o] = task.to_scale == nullptr ? 1.0F : task.to_scale[block.first + o];
    }
    const bool one_tap = task.taps == 1;
    if (size >= 4 && task.taps >= 4) {
        pack_taps(block);
    } else if (size >= 4 && one_tap && task.from_channels >= 4 && task.from_stride == 1 &&
               consecutive(task.from_index, task.from_channels)) {
        pack_inputs(block);
    } else if (size >= 4 && one_tap && task.to_stride == 1 && consecutive(task.to_index + block.first, size)) {
        pack_rows(block);
    } else {
        pack_one_by_one(block);
    }
    // What pads a block is multiplied, too.
    for (std::ptrdiff_t i = 0; size < padded && i < block.tap_step * task.taps; i += padded) {
        for (int o = size; o < padded; ++o) {
            block.to[i + o] = 0.0F;
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
