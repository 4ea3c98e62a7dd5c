#pragma once
// The innermost loops of backward-weights: sums over pixels of every gradient of a block times every input of a block.

#include <cstddef>

#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Rows of pixels that lie packed: [row][pixel][channel of the block][lane].
struct WeightGradientTile {
    const float* gradient;
    const float* in;
    std::ptrdiff_t gradient_step;  // from one pixel to the next, in floats as all of these
    std::ptrdiff_t in_step;
    std::ptrdiff_t gradient_row;
    std::ptrdiff_t in_row;
    int rows;
    int pixels;   // of each row
    float* sums;  // [outputs][inputs][lane], added to
};

template <int outputs, int inputs>
DISTREAL_INLINE void multiply_pixel(Vector (&sums)[outputs][inputs], const float* gradient, const float* in) {
    constexpr bool hold_gradient = outputs <= inputs;
    constexpr int held_channels = hold_gradient ? outputs : inputs;
    constexpr int passing_channels = hold_gradient ? inputs : outputs;
    const float* const hold_from = hold_gradient ? gradient : in;
    const float* const pass_from = hold_gradient ? in : gradient;
    Vector held[held_channels];
    DISTREAL_UNROLL
    for (int h = 0; h < held_channels; ++h) {
        held[h] = load(hold_from + h * lanes);
        pin(held[h]);
    }
    DISTREAL_UNROLL
    for (int p = 0; p < passing_channels; ++p) {
        Vector passing = load(pass_from + p * lanes);
        pin(passing);
        DISTREAL_UNROLL
        for (int h = 0; h < held_channels; ++h) {
            Vector& sum = hold_gradient ? sums[h][p] : sums[p][h];
            sum = multiply_add(passing, held[h], sum);
        }
    }
}

template <int outputs, int inputs>
[[gnu::noinline]] void weight_gradient_tile(const WeightGradientTile& tile) {
    Vector sums[outputs][inputs];
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int i = 0; i < inputs; ++i) {
            sums[o][i] = load(tile.sums + (o * inputs + i) * lanes);
        }
    }
    const float* gradient_row = tile.gradient;
    const float* in_row = tile.in;
    for (int row = 0; row < tile.rows; ++row) {
        const float* gradient = gradient_row;
        const float* in = in_row;
        for (int pixel = tile.pixels; pixel > 0; --pixel) {
            multiply_pixel(sums, gradient, in);
            gradient += tile.gradient_step;
            in += tile.in_step;
        }
        gradient_row += tile.gradient_row;
        in_row += tile.in_row;
    }
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int i = 0; i < inputs; ++i) {
            store(tile.sums + (o * inputs + i) * lanes, sums[o][i]);
        }
    }
}

// Blocks of outputs and inputs whose sums, with the channels of one side and one of the other, fill the registers.
struct Block {
    int outputs;
    int inputs;
};

inline constexpr Block wide_blocks[] = {{4, 6}, {6, 4}, {5, 5}, {8, 3}, {3, 8}};
inline constexpr Block narrow_blocks[] = {{3, 4}, {4, 3}, {6, 2}, {2, 6}};

DISTREAL_INLINE constexpr int blocks_of(int channels, int most) { return (channels + most - 1) / most; }

// The blocks with the fewest loads, where every block of one side meets every block of the other.
DISTREAL_INLINE Block choose_block(int outputs, int inputs) {
    const Block* const candidates = registers == 32 ? wide_blocks : narrow_blocks;
    const int count = registers == 32 ? 5 : 4;
    Block best = candidates[0];
    std::int64_t least = INT64_MAX;
    for (int c = 0; c < count; ++c) {
        const std::int64_t rows = blocks_of(outputs, candidates[c].outputs);
        const std::int64_t columns = blocks_of(inputs, candidates[c].inputs);
        const std::int64_t loads = outputs * columns + inputs * rows + 2 * rows * columns;
        if (loads < least) {
            least = loads;
            best = candidates[c];
        }
    }
    return best;
}

inline constexpr int most_block_channels = 8;

// Whether a block of this size is inside one of the above.
DISTREAL_INLINE constexpr bool has_block(int outputs, int inputs) {
    const Block* const candidates = registers == 32 ? wide_blocks : narrow_blocks;
    const int count = registers == 32 ? 5 : 4;
    for (int c = 0; c < count; ++c) {
        if (outputs <= candidates[c].outputs && inputs <= candidates[c].inputs) {
            return true;
        }
    }
    return false;
}

using WeightGradientFunction = void (*)(const WeightGradientTile&);

template <int outputs, int inputs>
DISTREAL_INLINE constexpr WeightGradientFunction weight_gradient_function() {
    if constexpr (has_block(outputs, inputs)) {
        return weight_gradient_tile<outputs, inputs>;
    } else {
        return nullptr;
    }
}

struct WeightGradientFunctions {
    WeightGradientFunction of[most_block_channels * most_block_channels];
};

template <int... index>
DISTREAL_INLINE constexpr WeightGradientFunctions all_weight_gradient_functions(
    std::integer_sequence<int, index...> /*all*/) {
    return {{weight_gradient_function<index / most_block_channels + 1, index % most_block_channels + 1>()...}};
}

inline constexpr WeightGradientFunctions weight_gradient_functions =
    all_weight_gradient_functions(std::make_integer_sequence<int, most_block_channels * most_block_channels>{});

DISTREAL_INLINE WeightGradientFunction weight_gradient_function(int outputs, int inputs) {
    return weight_gradient_functions.of[(outputs - 1) * most_block_channels + inputs - 1];
}

}  // namespace distreal::DISTREAL_SIMD
