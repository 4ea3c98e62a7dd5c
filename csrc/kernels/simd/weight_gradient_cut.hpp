#pragma once
// How the work of a weight gradient is cut into units, and how its pixels lie while a unit works on them.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/simd/multiply.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// A unit makes the sums of so many outputs and inputs at most: enough to be worth turning pixels around for them, few
// enough for the sums to stay near.
inline constexpr int chunk_outputs = 48;
inline constexpr int panel_inputs = 64;
inline constexpr int chunk_outputs_of_one_tap = 96;
inline constexpr int panel_inputs_of_one_tap = 128;
inline constexpr int most_neighbours = 8;  // taps of a row that are worked on together
inline constexpr int most_rows = 8;        // of inputs, kept for rows of outputs to come

inline constexpr int segment_pixels = 64;  // of a row of outputs at once
inline constexpr int batch_pixels = 32;    // of several short rows at once, where rows of inputs are not kept
inline constexpr int near_floats = lanes > 4 ? 12288 : 5120;  // that stay in the nearest cache beside the sums

// A number of things in parts as equal as can be.
struct Parts {
    int things;
    int count;

    DISTREAL_INLINE int begin(int part) const { return part_begin(things, part, count); }
    DISTREAL_INLINE int size(int part) const { return begin(part + 1) - begin(part); }
    DISTREAL_INLINE int largest() const { return (things + count - 1) / count; }
};

DISTREAL_INLINE Parts parts_of(int things, int most) { return {things, (things + most - 1) / most}; }
DISTREAL_INLINE int vectors_of(int floats) { return (floats + lanes - 1) / lanes; }
DISTREAL_INLINE std::ptrdiff_t whole_vectors(std::ptrdiff_t floats) { return (floats + lanes - 1) / lanes * lanes; }

struct WeightGradientCut {
    Parts outputs;
    Parts inputs;
    Parts columns;  // of the window: neighbours, whose inputs are contiguous
};

DISTREAL_INLINE WeightGradientCut cut_of(const WeightGradientTask<float>& task) {
    const bool one_tap = task.window->taps() == 1;
    return {parts_of(task.out_channels, one_tap ? chunk_outputs_of_one_tap : chunk_outputs),
            parts_of(task.in_channels, one_tap ? panel_inputs_of_one_tap : panel_inputs),
            parts_of(task.window->kernel[1], task.window->dilation[1] == 1 ? most_neighbours : 1)};
}

// What a group of the window's columns reads along any row, as pixels counted from the first one that the group's first
// tap with any run reads (inputs) or makes (outputs) there.
struct RowShape {
    int column;  // of that tap; -1: there is none
    int first_out;
    int outs;
    int window;  // where the window of the first output begins: maybe outside of the plane
    int begin;   // inputs that exist and are read: from here
    int end;     // to here
    int in_step;
};

DISTREAL_INLINE const std::vector<Run>& runs_of(const WeightGradientTask<float>& task, int row, int column) {
    return task.runs->of_tap[static_cast<std::size_t>(row * task.window->kernel[1] + column)];
}

DISTREAL_INLINE RowShape shape_of_rows(const WeightGradientTask<float>& task, int first_column, int end_column) {
    RowShape shape{-1, 0, 0, 0, 0, 0, 1};
    int end_out = 0;
    for (int row = 0; row < task.window->kernel[0] && shape.column < 0; ++row) {
        const Run* reference = nullptr;
        for (int column = first_column; column < end_column; ++column) {
            const std::vector<Run>& runs = runs_of(task, row, column);
            if (runs.size() == 0) {
                continue;
            }
            const Run& run = runs[0];
            if (reference == nullptr) {
                reference = &run;
                shape.column = column;
                shape.in_step = run.in_step;
            }
            const int out = run.out - reference->out;
            const int in = run.in - reference->in;
            const int in_end = in + (run.count - 1) * run.in_step + 1;
            shape.first_out = out < shape.first_out ? out : shape.first_out;
            shape.begin = in < shape.begin ? in : shape.begin;
            end_out = out + run.count > end_out ? out + run.count : end_out;
            shape.end = in_end > shape.end ? in_end : shape.end;
        }
    }
    shape.outs = end_out - shape.first_out;
    shape.window = shape.first_out * shape.in_step - (shape.column - first_column);
    return shape;
}

// How pixels lie once they are turned around: [image][pixel][channel].
struct TurnedLayout {
    bool joined;             // the inputs under all rows of the window lie side by side, and count as one row
    bool vectors_of_in;      // sums are vectors of inputs, by numbers of the gradient; else the other way round
    int tap_rows;            // 1 if joined
    int segment;             // outputs of a row that are taken at once
    int batch;               // rows of outputs that are taken at once
    int kept_rows;           // of inputs
    int spacing;             // pixels from one turned input to the next
    int in_pixels;           // turned for a segment
    int channels;            // of a turned pixel of inputs
    int columns;             // floats under the window
    std::ptrdiff_t in_step;  // floats from one output's window to the next one's
    std::ptrdiff_t in_run;   // floats of an image
    std::ptrdiff_t out_run;
};

// Cycles for all products of a pixel of one image, about: two multiply-adds a cycle, if there are eight that do not
// wait for each other, and two loads.
DISTREAL_INLINE std::int64_t product_cost(int numbers, int vectors) {
    const Parts number_blocks = parts_of(numbers, most_numbers);
    const Parts vector_blocks = parts_of(vectors, vectors_with(number_blocks.largest()));
    const int products = number_blocks.largest() * vector_blocks.largest();
    const int loads = number_blocks.largest() + 2 * vector_blocks.largest();
    const int busy = products > loads ? products : loads;
    return static_cast<std::int64_t>(number_blocks.count) * vector_blocks.count * (busy > 8 ? busy : 8);
}

// Outputs that a tap makes, about, in all images of a vector that a unit works on.
DISTREAL_INLINE std::int64_t pixels_of_unit(const WeightGradientTask<float>& task, const RowShape& shape) {
    std::int64_t rows = 0;
    for (int row = 0; row < task.window->kernel[0] && shape.column >= 0; ++row) {
        const auto runs = static_cast<std::int64_t>(runs_of(task, row, shape.column).size());
        rows = runs > rows ? runs : rows;
    }
    const std::int64_t pixels = rows * shape.outs * task.blocks / task.parts;
    return pixels > 0 ? pixels : 1;
}

// Chooses what costs least: `joined` fills vectors better, but turns every row around once for every row of the window;
// sums that are vectors of outputs belong to weights that lie far apart.
DISTREAL_INLINE void choose_form(TurnedLayout& layout, int rows, int columns, int outputs, int inputs,
                                 std::int64_t pixels) {
    constexpr std::int64_t turn_cost = 10;  // of a vector, in the units of product_cost
    constexpr std::int64_t near_write_cost = 1;
    constexpr std::int64_t far_write_cost = 6;
    const std::int64_t weights = static_cast<std::int64_t>(rows) * columns * outputs * inputs;
    std::int64_t least = INT64_MAX;
    for (int form = 0; form < 4; ++form) {
        const bool joined = form % 2 == 1;
        const bool vectors_of_in = form < 2;
        if (joined && (rows == 1 || rows > most_rows)) {
            continue;
        }
        const int floats = columns * inputs * (joined ? rows : 1);
        const std::int64_t products =
            vectors_of_in ? product_cost(outputs, vectors_of(floats)) : product_cost(floats, vectors_of(outputs));
        const std::int64_t of_pixel = products * lanes * (joined ? 1 : rows) + turn_cost * inputs * (joined ? rows : 1);
        const std::int64_t cost = of_pixel * pixels + weights * (vectors_of_in ? near_write_cost : far_write_cost);
        if (cost < least) {
            least = cost;
            layout.joined = joined;
            layout.vectors_of_in = vectors_of_in;
        }
    }
}

DISTREAL_INLINE TurnedLayout layout_of(const WeightGradientTask<float>& task, const RowShape& shape, int columns,
                                       int outputs, int inputs) {
    const int rows = task.window->kernel[0];
    TurnedLayout layout{};
    choose_form(layout, rows, columns, outputs, inputs, pixels_of_unit(task, shape));
    layout.tap_rows = layout.joined ? 1 : rows;
    layout.segment = shape.outs < segment_pixels ? shape.outs : segment_pixels;
    layout.batch = layout.tap_rows > 1 || shape.outs <= 0 || shape.outs > batch_pixels ? 1 : batch_pixels / shape.outs;
    layout.kept_rows = layout.tap_rows == 1 ? layout.batch : rows < most_rows ? rows : most_rows;
    layout.spacing = columns == 1 ? shape.in_step : 1;
    const int step = shape.in_step / layout.spacing;
    layout.in_pixels = (layout.segment - 1) * step + columns;
    layout.channels = inputs * (layout.joined ? rows : 1);
    layout.columns = columns * layout.channels;
    layout.in_step = static_cast<std::ptrdiff_t>(step) * layout.channels;
    // Whole vectors reach beyond the last pixel.
    layout.in_run = whole_vectors(static_cast<std::ptrdiff_t>(layout.in_pixels) * layout.channels) + lanes;
    layout.out_run = whole_vectors(static_cast<std::ptrdiff_t>(layout.segment) * outputs) + lanes;
    return layout;
}

// The numbers and vectors whose sums a unit makes for each row of the window.
DISTREAL_INLINE Parts number_blocks_of(const TurnedLayout& layout, int outputs) {
    return parts_of(layout.vectors_of_in ? outputs : layout.columns, most_numbers);
}
DISTREAL_INLINE Parts vector_blocks_of(const TurnedLayout& layout, int outputs) {
    return parts_of(vectors_of(layout.vectors_of_in ? layout.columns : outputs),
                    vectors_with(number_blocks_of(layout, outputs).largest()));
}

// Floats from the beginning of a thread's scratch; the sums come first.
struct WeightGradientScratch {
    std::ptrdiff_t sums_of_row;
    std::ptrdiff_t outs;
    std::ptrdiff_t ins;
    std::ptrdiff_t end;
};

DISTREAL_INLINE WeightGradientScratch scratch_of(const TurnedLayout& layout, int outputs) {
    WeightGradientScratch scratch{};
    scratch.sums_of_row = static_cast<std::ptrdiff_t>(number_blocks_of(layout, outputs).things) *
                          vector_blocks_of(layout, outputs).things * lanes;
    scratch.outs = scratch.sums_of_row * layout.tap_rows;
    scratch.ins = scratch.outs + layout.batch * lanes * layout.out_run;
    scratch.end = scratch.ins + layout.kept_rows * lanes * layout.in_run;
    return scratch;
}

}  // namespace distreal::DISTREAL_SIMD
