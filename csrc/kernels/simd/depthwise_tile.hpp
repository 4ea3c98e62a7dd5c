#pragma once
// Depthwise convolutions with windows of 3x3 and padding 1, which is nearly all of them: rectangles of the result are
// made at once, so that a loaded pixel serves up to nine of them.

#include "kernels/kernels.hpp"
#include "kernels/simd/depthwise_end.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Along one axis, `step` says how coordinates of result and source belong together: with step 1 or 2 result t reads
// sources t * step - 1 to t * step + 1 (forward, and backward with step 1, where the taps are in opposite order); with
// step -2 source f is added to results 2 * f - 1 to 2 * f + 1 (backward with stride 2). In a tile both count from its
// first ones.
constexpr int tap_between(int step, int to, int from) { return step > 0 ? from - to * step : to + 1 - 2 * from; }
constexpr int sources_of(int step, int results) { return step > 0 ? (results - 1) * step + 3 : results / 2 + 1; }
constexpr int first_source(int step, int to) { return step > 0 ? to * step - 1 : to / 2; }

// Four rows would need fewer loads for a result and are up to a fifth faster on planes in the second-level cache, but
// come in twice as many streams of memory: with stride 2, and where pixels share cache sets, that is slower.
inline constexpr int tile_rows = 2;
inline constexpr int tile_columns = 4;

// Sides of a tile's sources that lie outside the plane.
struct Rim {
    bool top;
    bool bottom;
    bool left;
    bool right;
};

struct TileSource {
    const float* first;  // the source of the tile's first result and first tap, maybe outside the plane
    std::ptrdiff_t row_step;
    std::ptrdiff_t pixel_step;
    Rim rim;
};

// The nine weights of a channel, as they are needed: all held where there are registers for them.
template <bool held>
struct TileWeights {
    const float* weights;
    std::ptrdiff_t step;  // 1, or -1 for the opposite order
    Vector all[9];

    DISTREAL_INLINE void hold() {
        if constexpr (held) {
            DISTREAL_UNROLL
            for (int t = 0; t < 9; ++t) {
                all[t] = spread(weights[t * step]);
                pin(all[t]);
            }
        }
    }

    // Before a row of sources: forget what was loaded, or the compiler would hold it all and spill.
    DISTREAL_INLINE void forget() {
        if constexpr (!held) {
            asm volatile("" : "+r"(weights));
        }
    }

    DISTREAL_INLINE Vector operator[](int t) const { return held ? all[t] : spread(weights[t * step]); }
};

template <int step, int rows, int columns, class Weights>
DISTREAL_INLINE void add_tile(const TileSource& source, std::ptrdiff_t channel, Weights& weights,
                              Vector (&value)[rows * columns]) {
    constexpr int source_rows = sources_of(step, rows);
    constexpr int source_columns = sources_of(step, columns);
    const float* const first = source.first + channel;
    weights.hold();
    DISTREAL_UNROLL
    for (int i = 0; i < source_rows; ++i) {
        if ((i == 0 && source.rim.top) || (i == source_rows - 1 && source.rim.bottom)) {
            continue;
        }
        weights.forget();
        const float* const row = first + i * source.row_step;
        DISTREAL_UNROLL
        for (int j = 0; j < source_columns; ++j) {
            if ((j == 0 && source.rim.left) || (j == source_columns - 1 && source.rim.right)) {
                continue;
            }
            Vector given = load(row + j * source.pixel_step);
            pin(given);
            DISTREAL_UNROLL
            for (int y = 0; y < rows; ++y) {
                const int ky = tap_between(step, y, i);
                DISTREAL_UNROLL
                for (int x = 0; x < columns; ++x) {
                    const int kx = tap_between(step, x, j);
                    if (0 <= ky && ky < 3 && 0 <= kx && kx < 3) {
                        value[y * columns + x] = multiply_add(weights[ky * 3 + kx], given, value[y * columns + x]);
                    }
                }
            }
        }
    }
}

// One of the tasks that these tiles are for, cut to some channels of one block.
struct TilePlane {
    const DepthwiseTask<float>* task;
    const DepthwiseEnd* end;
    ChannelSums* sums;
    int first_channel;
    int channels;
    int block;
    bool opposite;  // the order of taps
};

template <int step>
DISTREAL_INLINE TileSource tile_source(const TilePlane& plane, int y, int x, int rows, int columns) {
    const Plane& from = plane.task->gather->from;
    const View<const float>& view = plane.task->from;
    const int top = first_source(step, y);
    const int left = first_source(step, x);
    const float* const first = at(view, plane.block, 0) + (top * from.width + left) * view.pixel_stride;
    return {first,
            from.width * view.pixel_stride,
            view.pixel_stride,
            {top<0, top + sources_of(step, rows)> from.height, left<0, left + sources_of(step, columns)> from.width}};
}

template <int step, int rows, int columns>
void make_tile(const TilePlane& plane, int y, int x) {
    const DepthwiseTask<float> task = *plane.task;
    const TileSource source = tile_source<step>(plane, y, x, rows, columns);
    const int width = task.gather->to.width;
    const TiledPixels<columns> pixels{y * width + x, width};
    TileWeights<registers >= 32> weights;
    weights.step = plane.opposite ? -1 : 1;
    for (int slot = 0; slot < plane.channels; ++slot) {
        const int c = plane.first_channel + slot;
        Vector value[rows * columns] = {};
        const Readings readings = readings_of(task, c);
        for (int reading = readings.begin; reading < readings.end; ++reading) {
            weights.weights = task.weights + static_cast<std::ptrdiff_t>(reading) * 9 + (plane.opposite ? 8 : 0);
            add_tile<step, rows, columns>(source, channel_read(task, reading), weights, value);
        }
        finish<rows * columns>(task, *plane.end, *plane.sums, c, slot, plane.block, pixels, value);
    }
}

template <int step, int rows>
void make_tile_row(const TilePlane& plane, int y) {
    const int width = plane.task->gather->to.width;
    int x = 0;
    for (; x + tile_columns <= width; x += tile_columns) {
        make_tile<step, rows, tile_columns>(plane, y, x);
    }
    for (; x + 2 <= width; x += 2) {
        make_tile<step, rows, 2>(plane, y, x);
    }
    if (x < width) {
        make_tile<step, rows, 1>(plane, y, x);
    }
}

// The rows of a band. Tiles begin at multiples of their height, which for step -2 must be even.
template <int step>
void make_tiles(const TilePlane& plane, int band) {
    const int height = plane.task->gather->to.height;
    const Span span = band_of(static_cast<std::size_t>((height + tile_rows - 1) / tile_rows), plane.task->cut, band);
    int y = span.begin * tile_rows;
    const int end = span.end * tile_rows < height ? span.end * tile_rows : height;
    for (; y + tile_rows <= end; y += tile_rows) {
        make_tile_row<step, tile_rows>(plane, y);
    }
    if (y < end) {
        make_tile_row<step, 1>(plane, y);
    }
}

DISTREAL_INLINE void make_band(int step, const TilePlane& plane, int band) {
    if (step == 1) {
        make_tiles<1>(plane, band);
    } else if (step == 2) {
        make_tiles<2>(plane, band);
    } else {
        make_tiles<-2>(plane, band);
    }
}

}  // namespace distreal::DISTREAL_SIMD
