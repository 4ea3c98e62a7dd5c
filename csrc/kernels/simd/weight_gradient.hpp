#pragma once
// Convolution, backward-weights: dot products over pixels and images, vectors of images by vectors of images.
//
// A tile of sums, some outputs by some inputs of one tap, stays in registers while it walks over the runs of some rows.
// The rows are few enough for what they hold of these outputs and inputs to stay in the first-level cache, where the
// neighbouring taps of the kernel's row find it again. Between such bundles of rows the sums wait, as vectors, in the
// thread's scratch; only at the end are the lanes of a vector added up.

#include <cstddef>

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// One run of pixels, as addresses.
struct WeightRun {
    const float* gradient;
    const float* in;
    int count;
};

struct WeightTile {
    const WeightRun* runs;
    const WeightRun* end_runs;
    std::ptrdiff_t gradient_step;  // from pixel to pixel
    std::ptrdiff_t in_step;
    float* sums;     // [outputs * inputs] vectors
    bool continues;  // the sums already hold something
};

// Accumulators and the operands that are held beside them fill the registers.
inline constexpr int most_tile_outputs = registers == 32 ? 8 : 3;
inline constexpr int most_tile_inputs = registers == 32 ? 6 : 4;
inline constexpr int most_tile_sums = registers == 32 ? 24 : 12;

template <int outputs, int inputs>
[[gnu::noinline]] void weight_gradient_tile(const WeightTile& tile) {
    Vector sums[outputs][inputs];
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int i = 0; i < inputs; ++i) {
            sums[o][i] = tile.continues ? load(tile.sums + (o * inputs + i) * lanes) : Vector{};
        }
    }
    const std::ptrdiff_t gradient_step = tile.gradient_step;
    const std::ptrdiff_t in_step = tile.in_step;
    for (const WeightRun* run = tile.runs; run != tile.end_runs; ++run) {
        const float* gradient = run->gradient;
        const float* in = run->in;
        for (int left = run->count; left != 0; --left) {
            // The operand with fewer vectors is held, the other one comes vector by vector.
            if constexpr (outputs <= inputs) {
                Vector held[outputs];
                DISTREAL_UNROLL
                for (int o = 0; o < outputs; ++o) {
                    held[o] = load(gradient + o * lanes);
                    pin(held[o]);
                }
                DISTREAL_UNROLL
                for (int i = 0; i < inputs; ++i) {
                    Vector x = load(in + i * lanes);
                    pin(x);
                    DISTREAL_UNROLL
                    for (int o = 0; o < outputs; ++o) {
                        sums[o][i] = multiply_add(x, held[o], sums[o][i]);
                    }
                }
            } else {
                Vector held[inputs];
                DISTREAL_UNROLL
                for (int i = 0; i < inputs; ++i) {
                    held[i] = load(in + i * lanes);
                    pin(held[i]);
                }
                DISTREAL_UNROLL
                for (int o = 0; o < outputs; ++o) {
                    Vector d = load(gradient + o * lanes);
                    pin(d);
                    DISTREAL_UNROLL
                    for (int i = 0; i < inputs; ++i) {
                        sums[o][i] = multiply_add(d, held[i], sums[o][i]);
                    }
                }
            }
            gradient += gradient_step;
            in += in_step;
        }
    }
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int i = 0; i < inputs; ++i) {
            store(tile.sums + (o * inputs + i) * lanes, sums[o][i]);
        }
    }
}

using WeightTileFunction = void (*)(const WeightTile&);

// Tiles that need more registers than there are do not exist; the shapes below never ask for them.
template <int outputs, int inputs>
constexpr WeightTileFunction weight_tile_function() {
    if constexpr (outputs * inputs <= most_tile_sums) {
        return weight_gradient_tile<outputs, inputs>;
    } else {
        return nullptr;
    }
}

#define DISTREAL_WEIGHT_ROW(o)                                                                 \
    {weight_tile_function<o, 1>(), weight_tile_function<o, 2>(), weight_tile_function<o, 3>(), \
     weight_tile_function<o, 4>(), weight_tile_function<o, 5>(), weight_tile_function<o, 6>()}
inline constexpr WeightTileFunction weight_tiles[8][6] = {
    DISTREAL_WEIGHT_ROW(1), DISTREAL_WEIGHT_ROW(2), DISTREAL_WEIGHT_ROW(3), DISTREAL_WEIGHT_ROW(4),
    DISTREAL_WEIGHT_ROW(5), DISTREAL_WEIGHT_ROW(6), DISTREAL_WEIGHT_ROW(7), DISTREAL_WEIGHT_ROW(8),
};
#undef DISTREAL_WEIGHT_ROW

// How many blocks outputs and inputs are cut into; blocks differ by one at most.
struct WeightShape {
    int output_blocks;
    int input_blocks;
};

DISTREAL_INLINE int ceiling(int number, int divisor) { return (number + divisor - 1) / divisor; }

inline WeightShape weight_shape(const WeightGradientTask<float>& task) {
    // Taps of a kernel's row share their inputs in the cache. Without that, wide blocks of outputs read them less
    // often.
    const bool shares = task.window->kernel.data()[1] > 1;
    int inputs = registers == 32 ? (shares && task.in_channels > 3 && task.out_channels > 1 ? 6 : 3) : 4;
    if (task.out_channels <= 4 && registers == 32) {
        inputs = 6;
    }
    const int input_blocks = ceiling(task.in_channels, inputs);
    const int widest = ceiling(task.in_channels, input_blocks);
    int outputs = most_tile_sums / widest;
    outputs = outputs < most_tile_outputs ? outputs : most_tile_outputs;
    return {ceiling(task.out_channels, outputs), input_blocks};
}

// Rows are bundled until they have this many pixels: two operands of them fit into a cache of 32 KiB.
inline constexpr int bundle_pixels = 20 * 1024 / (10 * lanes * 4);
inline constexpr int bundle_rows = 64;

// The runs of one tap in all blocks of images, of which one part is summed.
struct WeightRows {
    std::int64_t begin;
    std::int64_t end;
    std::int64_t in_block;
};

DISTREAL_INLINE WeightRows weight_rows(const WeightGradientTask<float>& task, std::size_t runs, int part) {
    const auto count = static_cast<std::int64_t>(runs) * task.blocks;
    return {count * part / task.parts, count * (part + 1) / task.parts, static_cast<std::int64_t>(runs)};
}

inline int weight_gradient_units(const WeightGradientTask<float>& task) {
    return task.parts * weight_shape(task).output_blocks * task.window->kernel.data()[0];
}

inline std::size_t weight_gradient_scratch(const WeightGradientTask<float>& task) {
    const WeightShape shape = weight_shape(task);
    const auto taps = static_cast<std::size_t>(task.window->kernel.data()[1]);
    return static_cast<std::size_t>(shape.input_blocks) * taps * most_tile_sums * lanes;
}

// The end of the bundle of rows that starts at `begin`: enough pixels, and not too many rows.
inline std::int64_t bundle_end(const Run* runs, const WeightRows& rows, std::int64_t begin) {
    int pixels = 0;
    std::int64_t end = begin;
    while (end < rows.end && end - begin < bundle_rows && pixels < bundle_pixels) {
        pixels += runs[end % rows.in_block].count;
        ++end;
    }
    return end;
}

struct WeightBlock {
    int first_output;
    int outputs;
    int first_tap;
    int taps;
    int input_blocks;
    int part;
};

// Add the lanes up and write the sums of one tap: result[o][i][tap].
inline void finish_weights(const WeightGradientTask<float>& task, const WeightBlock& block, int tap, int first_input,
                           int inputs, const float* sums) {
    Vector vectors[(most_tile_sums + lanes - 1) / lanes * lanes];
    const int count = block.outputs * inputs;
    for (int v = 0; v < (count + lanes - 1) / lanes * lanes; ++v) {
        vectors[v] = v < count ? load(sums + static_cast<std::ptrdiff_t>(v) * lanes) : Vector{};
    }
    float totals[(most_tile_sums + lanes - 1) / lanes * lanes];
    for (int v = 0; v < count; v += lanes) {
        store(totals + v, sums_of_lanes<lanes>(vectors + v));
    }
    const int taps = task.window->taps();
    for (int o = 0; o < block.outputs; ++o) {
        const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(block.part) * task.out_channels + block.first_output + o;
        float* const result = task.result + (row * task.in_channels + first_input) * taps + tap;
        for (int i = 0; i < inputs; ++i) {
            result[static_cast<std::ptrdiff_t>(i) * taps] = totals[o * inputs + i];
        }
    }
}

// Some taps whose runs lie in the same rows.
inline void sum_taps(const WeightGradientTask<float>& task, const WeightBlock& block, float* scratch) {
    const auto& of_tap = task.runs->of_tap;
    const auto runs_of = [&](int tap) DISTREAL_INLINE_LAMBDA { return of_tap.data()[block.first_tap + tap].data(); };
    const WeightRows rows = weight_rows(task, of_tap.data()[block.first_tap].size(), block.part);
    const std::ptrdiff_t sums_step = static_cast<std::ptrdiff_t>(most_tile_sums) * lanes;
    WeightRun bundle[bundle_rows];
    std::int64_t begin = rows.begin;
    do {
        const std::int64_t end = rows.begin == rows.end ? begin : bundle_end(runs_of(0), rows, begin);
        for (int ib = 0; ib < block.input_blocks; ++ib) {
            const int first_input = part_begin(task.in_channels, ib, block.input_blocks);
            const int inputs = part_begin(task.in_channels, ib + 1, block.input_blocks) - first_input;
            for (int tap = 0; tap < block.taps; ++tap) {
                const Run* const runs = runs_of(tap);
                int in_step = 1;
                for (std::int64_t row = begin; row < end; ++row) {
                    const Run& run = runs[row % rows.in_block];
                    const auto images = static_cast<int>(row / rows.in_block);
                    bundle[row - begin] = {
                        at(task.gradient, images, run.out) + static_cast<std::ptrdiff_t>(block.first_output) * lanes,
                        at(task.in, images, run.in) + static_cast<std::ptrdiff_t>(first_input) * lanes, run.count};
                    in_step = run.in_step;
                }
                // A single bundle needs no room for the sums of others.
                const bool only = begin == rows.begin && end == rows.end;
                float* const sums =
                    only ? scratch : scratch + (static_cast<std::ptrdiff_t>(ib) * block.taps + tap) * sums_step;
                weight_tiles[block.outputs - 1][inputs - 1]({.runs = bundle,
                                                             .end_runs = bundle + (end - begin),
                                                             .gradient_step = task.gradient.pixel_stride,
                                                             .in_step = in_step * task.in.pixel_stride,
                                                             .sums = sums,
                                                             .continues = begin != rows.begin});
                if (end == rows.end) {
                    finish_weights(task, block, block.first_tap + tap, first_input, inputs, sums);
                }
            }
        }
        begin = end;
    } while (begin < rows.end);
}

inline void weight_gradient(const WeightGradientTask<float>& task, int unit, float* scratch) {
    const WeightShape shape = weight_shape(task);
    const int kernel_rows = task.window->kernel.data()[0];
    const int taps = task.window->kernel.data()[1];
    const int kernel_row = unit % kernel_rows;
    const int output_block = unit / kernel_rows % shape.output_blocks;
    const int first_output = part_begin(task.out_channels, output_block, shape.output_blocks);
    WeightBlock block{.first_output = first_output,
                      .outputs = part_begin(task.out_channels, output_block + 1, shape.output_blocks) - first_output,
                      .first_tap = kernel_row * taps,
                      .taps = taps,
                      .input_blocks = shape.input_blocks,
                      .part = unit / kernel_rows / shape.output_blocks};
    // Taps beside the plane have no runs at all; then the rows of a kernel's row are not the same.
    const auto* const of_tap = task.runs->of_tap.data() + block.first_tap;
    bool same_rows = true;
    for (int tap = 1; tap < taps; ++tap) {
        same_rows = same_rows && of_tap[tap].size() == of_tap[0].size();
    }
    if (same_rows) {
        sum_taps(task, block, scratch);
        return;
    }
    block.taps = 1;
    for (int tap = 0; tap < taps; ++tap) {
        block.first_tap = kernel_row * taps + tap;
        sum_taps(task, block, scratch);
    }
}

}  // namespace distreal::DISTREAL_SIMD
