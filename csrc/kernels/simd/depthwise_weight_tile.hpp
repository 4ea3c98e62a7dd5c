#pragma once
// Gradients of depthwise weights with windows of 3x3, padding 1 and stride 1 or 2: rectangles of output gradients, so
// that inputs and gradients are read about once, and each of the nine sums is loaded and stored once for a rectangle.

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// How many channels a unit works on, bounded because nine sums of each are on the stack.
inline constexpr int channels_of_weight_unit = 32;

// With the nine sums and an input, these fit the registers.
inline constexpr int weight_tile = registers >= 32 ? 4 : 2;

// What the runs of an output's pixels tell about the planes: every row has one of the window's middle tap.
struct WeightPlane {
    int height;  // of the output
    int width;
    int in_width;
    int stride;
    bool ends_below;    // the last output row reads below the input
    bool ends_outside;  // the last output column reads to the right of it
};

DISTREAL_INLINE WeightPlane weight_plane(const DepthwiseWeightTask<float>& task) {
    const auto* const runs = task.runs->of_tap.data();
    const Run* const middle = runs[4].data();
    const int height = static_cast<int>(runs[4].size());
    const int stride = task.window->stride.data()[0];
    int in_width = 0;  // in a plane of one row it is never needed
    if (runs[7].size() > 0) {
        in_width = runs[7].data()[0].in - middle[0].in;
    } else if (height > 1) {
        in_width = (middle[1].in - middle[0].in) / stride;
    }
    const bool ends_outside = runs[5].size() == 0 || runs[5].data()[0].count < middle[0].count;
    return {height, middle[0].count, in_width, stride, static_cast<int>(runs[7].size()) < height, ends_outside};
}

// Nine sums of some channels, one channel after the other as in the result.
struct TapSums {
    Vector of[channels_of_weight_unit * 9];
};

static_assert(channels_of_weight_unit * 9 % lanes == 0, "store_sums reads whole vectors of results");

template <int stride, int rows, int columns>
void weigh_tile(const DepthwiseWeightTask<float>& given, const WeightPlane& plane, TapSums& sums, int first, int count,
                int block, int y, int x) {
    constexpr int in_rows = (rows - 1) * stride + 3;
    constexpr int in_columns = (columns - 1) * stride + 3;
    const DepthwiseWeightTask<float> task = given;
    const bool top = y == 0;
    const bool left = x == 0;
    const bool bottom = plane.ends_below && y + rows == plane.height;
    const bool right = plane.ends_outside && x + columns == plane.width;
    const std::ptrdiff_t row_step = plane.in_width * task.in.pixel_stride;
    const std::ptrdiff_t gradient_row_step = plane.width * task.gradient.pixel_stride;
    const float* gradient = at(task.gradient, block, y * plane.width + x) + static_cast<std::ptrdiff_t>(first) * lanes;
    const float* const in = at(task.in, block, (y * stride - 1) * plane.in_width + x * stride - 1);
    for (int slot = 0; slot < count; ++slot) {
        Vector d[rows * columns];
        DISTREAL_UNROLL
        for (int i = 0; i < rows * columns; ++i) {
            d[i] = load(gradient + i / columns * gradient_row_step + i % columns * task.gradient.pixel_stride);
            pin(d[i]);
        }
        Vector sum[9];
        DISTREAL_UNROLL
        for (int t = 0; t < 9; ++t) {
            sum[t] = sums.of[slot * 9 + t];
        }
        const float* const channel = in + static_cast<std::ptrdiff_t>(task.partner[first + slot]) * lanes;
        DISTREAL_UNROLL
        for (int i = 0; i < in_rows; ++i) {
            if ((i == 0 && top) || (i == in_rows - 1 && bottom)) {
                continue;
            }
            const float* const row = channel + i * row_step;
            DISTREAL_UNROLL
            for (int j = 0; j < in_columns; ++j) {
                if ((j == 0 && left) || (j == in_columns - 1 && right)) {
                    continue;
                }
                Vector value = load(row + j * task.in.pixel_stride);
                pin(value);
                DISTREAL_UNROLL
                for (int o = 0; o < rows * columns; ++o) {
                    const int ky = i - o / columns * stride;
                    const int kx = j - o % columns * stride;
                    if (0 <= ky && ky < 3 && 0 <= kx && kx < 3) {
                        sum[ky * 3 + kx] = multiply_add(value, d[o], sum[ky * 3 + kx]);
                    }
                }
            }
        }
        DISTREAL_UNROLL
        for (int t = 0; t < 9; ++t) {
            sums.of[slot * 9 + t] = sum[t];
        }
        gradient += lanes;
    }
}

template <int stride, int rows>
void weigh_tile_row(const DepthwiseWeightTask<float>& task, const WeightPlane& plane, TapSums& sums, int first,
                    int count, int block, int y) {
    int x = 0;
    for (; x + weight_tile <= plane.width; x += weight_tile) {
        weigh_tile<stride, rows, weight_tile>(task, plane, sums, first, count, block, y, x);
    }
    for (; x < plane.width; ++x) {
        weigh_tile<stride, rows, 1>(task, plane, sums, first, count, block, y, x);
    }
}

// Some channels over a part of all rows of tiles. result: [count][9].
template <int stride>
void weigh_tiles(const DepthwiseWeightTask<float>& task, const WeightPlane& plane, int part, int first, int count,
                 float* result) {
    TapSums sums;
    for (Vector& sum : sums.of) {
        sum = Vector{};
    }
    const int tile_rows_of_block = (plane.height + weight_tile - 1) / weight_tile;
    const std::int64_t all = static_cast<std::int64_t>(task.blocks) * tile_rows_of_block;
    const int end = part_begin(all, part + 1, task.parts);
    for (int tile_row = part_begin(all, part, task.parts); tile_row < end; ++tile_row) {
        const int block = tile_row / tile_rows_of_block;
        int y = tile_row % tile_rows_of_block * weight_tile;
        if (y + weight_tile <= plane.height) {
            weigh_tile_row<stride, weight_tile>(task, plane, sums, first, count, block, y);
        } else {
            for (; y < plane.height; ++y) {
                weigh_tile_row<stride, 1>(task, plane, sums, first, count, block, y);
            }
        }
    }
    store_sums(result, sums.of, count * 9);
}

}  // namespace distreal::DISTREAL_SIMD
