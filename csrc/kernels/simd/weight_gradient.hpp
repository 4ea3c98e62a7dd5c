#pragma once
// Convolution, backward-weights: dot products over pixels and images, vectors of images by vectors of images.
//
// A unit makes the sums of a chunk of outputs by a panel of inputs by the taps of one row of the window. It copies the
// channels of a few rows of pixels at a time side by side, where they stay in the nearest cache while every block of
// outputs meets every block of inputs, and keeps all its sums as vectors until its end.

#include <cstddef>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"
#include "kernels/simd/weight_gradient_tile.hpp"

namespace distreal::DISTREAL_SIMD {

// Pixels that a tile has, unless one row is longer than that: then it is cut.
inline constexpr int tile_pixels = 512 / lanes;

// Channels as blocks as equal as can be.
struct Blocks {
    int channels;
    int count;

    DISTREAL_INLINE int begin(int block) const { return part_begin(channels, block, count); }
    DISTREAL_INLINE int size(int block) const { return begin(block + 1) - begin(block); }
    DISTREAL_INLINE int largest() const { return (channels + count - 1) / count; }
};

// How a task is cut, in every direction.
struct WeightGradientCut {
    int rows_of_taps;
    int taps_of_row;
    bool folded;     // the taps of a row count as so many inputs: neighbouring pixels of few inputs lie side by side
    Blocks taps;     // of a row, in groups; folded: a single one
    Blocks outputs;  // in blocks
    Blocks inputs;
    Blocks chunks;  // of blocks of outputs
    Blocks panels;  // of blocks of inputs
};

DISTREAL_INLINE WeightGradientCut cut_of(const WeightGradientTask<float>& task) {
    constexpr int taps_at_once = 5;
    constexpr int few_inputs = 3;
    constexpr int panel_inputs = 64;
    WeightGradientCut cut{};
    cut.rows_of_taps = task.window->kernel[0];
    cut.taps_of_row = task.window->kernel[1];
    cut.folded = task.in_channels <= few_inputs && cut.taps_of_row > 1 && task.window->dilation[1] == 1;
    cut.taps = {cut.folded ? 1 : cut.taps_of_row, cut.folded ? 1 : blocks_of(cut.taps_of_row, taps_at_once)};
    const int inputs = cut.folded ? task.in_channels * cut.taps_of_row : task.in_channels;
    const Block block = choose_block(task.out_channels, inputs);
    cut.outputs = {task.out_channels, blocks_of(task.out_channels, block.outputs)};
    cut.inputs = {inputs, blocks_of(inputs, block.inputs)};
    const int chunk_outputs = cut.taps_of_row == 1 ? 48 : 16;
    const int chunk = chunk_outputs / block.outputs < 1 ? 1 : chunk_outputs / block.outputs;
    cut.chunks = {cut.outputs.count, blocks_of(cut.outputs.count, chunk)};
    cut.panels = {cut.inputs.count, blocks_of(cut.inputs.count, panel_inputs / block.inputs)};
    return cut;
}

// What the taps of one group read and where, as pixels of a row of outputs and of a row of inputs; the same for all
// rows but for where they lie.
struct RowShape {
    const std::vector<Run>* runs;  // of a tap that has any: where rows lie. Null: nothing is read
    int rows;
    int first_out;  // of the first row
    int first_in;
    int outs;  // pixels
    int ins;
    int in_step;
};

DISTREAL_INLINE RowShape shape_of_row(const WeightGradientTask<float>& task, int first_tap, int end_tap) {
    RowShape shape{};
    int end_out = 0;
    int end_in = 0;
    for (int tap = first_tap; tap < end_tap; ++tap) {
        const std::vector<Run>& runs = task.runs->of_tap[static_cast<std::size_t>(tap)];
        if (runs.size() == 0) {
            continue;
        }
        const Run& run = runs[0];
        const int run_end_out = run.out + run.count;
        const int run_end_in = run.in + (run.count - 1) * run.in_step + 1;
        if (shape.runs == nullptr) {
            shape = {&runs, static_cast<int>(runs.size()), run.out, run.in, 0, 0, run.in_step};
            end_out = run_end_out;
            end_in = run_end_in;
        } else {
            shape.first_out = run.out < shape.first_out ? run.out : shape.first_out;
            shape.first_in = run.in < shape.first_in ? run.in : shape.first_in;
            end_out = run_end_out > end_out ? run_end_out : end_out;
            end_in = run_end_in > end_in ? run_end_in : end_in;
        }
    }
    shape.outs = end_out - shape.first_out;
    shape.ins = end_in - shape.first_in;
    return shape;
}

// Where a thread keeps what, in floats from the beginning of its scratch.
struct WeightGradientScratch {
    std::ptrdiff_t sums;
    std::ptrdiff_t gradients;
    std::ptrdiff_t inputs;
    std::ptrdiff_t end;
};

// Tiles are whole rows of pixels, several of them where they are short, or parts of one row.
DISTREAL_INLINE int rows_at_once(const RowShape& shape) {
    return shape.outs <= 0 || shape.outs >= tile_pixels ? 1 : tile_pixels / shape.outs;
}
DISTREAL_INLINE int columns_at_once(const RowShape& shape) {
    return shape.outs < tile_pixels ? shape.outs : tile_pixels;
}
// Inputs between the first and the last that a tile's row reads.
DISTREAL_INLINE int inputs_at_once(const RowShape& shape, const WeightGradientTask<float>& task, int taps) {
    const int reach = (columns_at_once(shape) - 1) * shape.in_step + (taps - 1) * task.window->dilation[1] + 1;
    return reach;
}

DISTREAL_INLINE WeightGradientScratch scratch_of(const WeightGradientTask<float>& task, const WeightGradientCut& cut) {
    const int chunk_outputs = cut.outputs.largest() * cut.chunks.largest();
    const int panel_inputs = cut.inputs.largest() * cut.panels.largest();
    const int taps = cut.taps.largest();
    std::ptrdiff_t inputs = 0;
    std::ptrdiff_t gradients = 0;
    for (int group = 0; group < cut.rows_of_taps * cut.taps.count; ++group) {
        const int row = group / cut.taps.count * cut.taps_of_row;
        const int first = row + (cut.folded ? 0 : cut.taps.begin(group % cut.taps.count));
        const int end = row + (cut.folded ? cut.taps_of_row : cut.taps.begin(group % cut.taps.count + 1));
        const RowShape shape = shape_of_row(task, first, end);
        const std::ptrdiff_t rows = rows_at_once(shape);
        const std::ptrdiff_t channels = cut.folded ? task.in_channels : cut.inputs.largest();
        const std::ptrdiff_t of_tile = rows * inputs_at_once(shape, task, end - first) * channels;
        inputs = of_tile > inputs ? of_tile : inputs;
        gradients = rows * columns_at_once(shape) > gradients ? rows * columns_at_once(shape) : gradients;
    }
    WeightGradientScratch scratch{};
    scratch.gradients = static_cast<std::ptrdiff_t>(chunk_outputs) * panel_inputs * taps * lanes + lanes * lanes;
    scratch.inputs = scratch.gradients + gradients * chunk_outputs * lanes;
    scratch.end = scratch.inputs + inputs * lanes;
    return scratch;
}

inline int weight_gradient_units(const WeightGradientTask<float>& task) {
    const WeightGradientCut cut = cut_of(task);
    return task.parts * cut.rows_of_taps * cut.taps.count * cut.chunks.count * cut.panels.count;
}

inline std::size_t weight_gradient_scratch(const WeightGradientTask<float>& task) {
    return static_cast<std::size_t>(scratch_of(task, cut_of(task)).end);
}

template <int channels>
[[gnu::noinline]] void copy_pixels(float* to, const float* from, std::ptrdiff_t from_step, int pixels) {
    for (int pixel = 0; pixel < pixels; ++pixel) {
        DISTREAL_UNROLL
        for (int c = 0; c < channels; ++c) {
            store(to + c * lanes, load(from + c * lanes));
        }
        to += channels * lanes;
        from += from_step;
    }
}

// Some channels of some pixels, side by side.
DISTREAL_INLINE void copy_pixels(float* to, const float* from, std::ptrdiff_t from_step, int pixels, int channels) {
    constexpr void (*functions[])(float*, const float*, std::ptrdiff_t, int) = {
        copy_pixels<1>, copy_pixels<2>, copy_pixels<3>, copy_pixels<4>,
        copy_pixels<5>, copy_pixels<6>, copy_pixels<7>, copy_pixels<8>};
    functions[channels - 1](to, from, from_step, pixels);
}

DISTREAL_INLINE void clear(float* to, std::ptrdiff_t vectors) {
    for (std::ptrdiff_t i = 0; i < vectors; ++i) {
        store(to + i * lanes, Vector{});
    }
}

// One unit at work.
struct WeightGradientUnit {
    const WeightGradientTask<float>& task;
    const WeightGradientCut& cut;
    RowShape shape;
    int first_tap;
    int taps;  // of the group; folded: 1
    int first_output_block;
    int end_output_block;
    int first_input_block;
    int end_input_block;
    float* sums;
    float* gradients;
    float* inputs;
};

// What one tile reads.
struct PixelRows {
    std::int64_t first;  // row of the list of all rows of all blocks of images
    int rows;
    int column;
    int columns;
};

DISTREAL_INLINE void copy_gradients(const WeightGradientUnit& unit, const PixelRows& pixels) {
    float* to = unit.gradients;
    for (int b = unit.first_output_block; b < unit.end_output_block; ++b) {
        const int channels = unit.cut.outputs.size(b);
        for (int row = 0; row < pixels.rows; ++row) {
            const int block = static_cast<int>((pixels.first + row) / unit.shape.rows);
            const auto r = static_cast<std::size_t>((pixels.first + row) % unit.shape.rows);
            const int out =
                unit.shape.first_out + pixels.column + (*unit.shape.runs)[r].out - (*unit.shape.runs)[0].out;
            copy_pixels(to, at(unit.task.gradient, block, out) + unit.cut.outputs.begin(b) * lanes,
                        unit.task.gradient.pixel_stride, pixels.columns, channels);
            to += static_cast<std::ptrdiff_t>(pixels.columns) * channels * lanes;
        }
    }
}

// Copies `channels` channels of the pixels [begin, begin + ins) of the rows of inputs, counted from the first that is
// read at all; zeros where there are no pixels.
DISTREAL_INLINE void copy_inputs(const WeightGradientUnit& unit, const PixelRows& pixels, int begin, int ins, int step,
                                 int first_channel, int channels) {
    float* to = unit.inputs;
    const int count = (ins + step - 1) / step;
    for (int row = 0; row < pixels.rows; ++row) {
        const int block = static_cast<int>((pixels.first + row) / unit.shape.rows);
        const auto r = static_cast<std::size_t>((pixels.first + row) % unit.shape.rows);
        const int first_in = unit.shape.first_in + (*unit.shape.runs)[r].in - (*unit.shape.runs)[0].in;
        const int before = begin < 0 ? -begin : 0;
        const int inside = unit.shape.ins - (begin + before);
        const int copied = count - before < inside ? count - before : inside;
        clear(to, static_cast<std::ptrdiff_t>(before) * channels);
        to += static_cast<std::ptrdiff_t>(before) * channels * lanes;
        if (step > 1) {
            copy_pixels(to, at(unit.task.in, block, first_in + begin) + first_channel * lanes,
                        unit.task.in.pixel_stride * step, count, channels);
            to += static_cast<std::ptrdiff_t>(count) * channels * lanes;
            continue;
        }
        copy_pixels(to, at(unit.task.in, block, first_in + begin + before) + first_channel * lanes,
                    unit.task.in.pixel_stride, copied, channels);
        to += static_cast<std::ptrdiff_t>(copied) * channels * lanes;
        clear(to, static_cast<std::ptrdiff_t>(count - before - copied) * channels);
        to += static_cast<std::ptrdiff_t>(count - before - copied) * channels * lanes;
    }
}

DISTREAL_INLINE void multiply_tile(const WeightGradientUnit& unit, const PixelRows& pixels) {
    copy_gradients(unit, pixels);
    const WeightGradientCut& cut = unit.cut;
    const RowShape& shape = unit.shape;
    const int in_channels = unit.task.in_channels;
    const int step = !cut.folded && unit.taps == 1 ? shape.in_step : 1;
    int begin = 0;
    int ins = 0;
    // Where the window of the tile's first output begins, and where that of the last one ends.
    if (cut.folded) {
        for (int tap = unit.first_tap; tap < unit.first_tap + cut.taps_of_row; ++tap) {
            const std::vector<Run>& runs = unit.task.runs->of_tap[static_cast<std::size_t>(tap)];
            if (runs.size() > 0) {
                begin = runs[0].in - (runs[0].out - shape.first_out) * shape.in_step - (tap - unit.first_tap) -
                        shape.first_in + pixels.column * shape.in_step;
                break;
            }
        }
        ins = (pixels.columns - 1) * shape.in_step + cut.taps_of_row;
        copy_inputs(unit, pixels, begin, ins, 1, 0, in_channels);
    }
    float* sums = unit.sums;
    for (int i = unit.first_input_block; i < unit.end_input_block; ++i) {
        const int inputs = cut.inputs.size(i);
        const int channels = cut.folded ? in_channels : inputs;
        const Run* of_tap[8] = {};
        int first[8] = {};
        int count[8] = {};
        if (!cut.folded) {
            int end = 0;
            bool any = false;
            for (int t = 0; t < unit.taps; ++t) {
                const std::vector<Run>& runs = unit.task.runs->of_tap[static_cast<std::size_t>(unit.first_tap + t)];
                if (runs.size() == 0) {
                    continue;
                }
                const int run_first = runs[0].out - shape.first_out;
                const int run_end = run_first + runs[0].count;
                first[t] = run_first > pixels.column ? run_first : pixels.column;
                const int last = run_end < pixels.column + pixels.columns ? run_end : pixels.column + pixels.columns;
                count[t] = last - first[t];
                if (count[t] <= 0) {
                    continue;
                }
                of_tap[t] = runs.data();
                const int in = runs[0].in + (first[t] - run_first) * shape.in_step - shape.first_in;
                const int in_end = in + (count[t] - 1) * shape.in_step + 1;
                begin = !any || in < begin ? in : begin;
                end = !any || in_end > end ? in_end : end;
                any = true;
            }
            if (!any) {
                sums += static_cast<std::ptrdiff_t>(inputs) * unit.taps * lanes *
                        (cut.outputs.begin(unit.end_output_block) - cut.outputs.begin(unit.first_output_block));
                continue;
            }
            ins = end - begin;
            copy_inputs(unit, pixels, begin, ins, step, cut.inputs.begin(i), inputs);
        }
        WeightGradientTile tile;
        tile.rows = pixels.rows;
        tile.in_step = static_cast<std::ptrdiff_t>(shape.in_step / step) * channels * lanes;
        tile.in_row = static_cast<std::ptrdiff_t>((ins + step - 1) / step) * channels * lanes;
        const float* gradients = unit.gradients;
        for (int b = unit.first_output_block; b < unit.end_output_block; ++b) {
            const int outputs = cut.outputs.size(b);
            const WeightGradientFunction multiply = weight_gradient_function(outputs, inputs);
            tile.gradient_step = outputs * lanes;
            tile.gradient_row = static_cast<std::ptrdiff_t>(pixels.columns) * outputs * lanes;
            for (int t = 0; t < unit.taps; ++t) {
                tile.sums = sums;
                sums += static_cast<std::ptrdiff_t>(outputs) * inputs * lanes;
                if (cut.folded) {
                    tile.gradient = gradients;
                    tile.in = unit.inputs + cut.inputs.begin(i) * lanes;
                    tile.pixels = pixels.columns;
                } else {
                    if (of_tap[t] == nullptr) {
                        continue;
                    }
                    const int run_first = of_tap[t]->out - shape.first_out;
                    const int in = of_tap[t]->in + (first[t] - run_first) * shape.in_step - shape.first_in - begin;
                    tile.gradient = gradients + static_cast<std::ptrdiff_t>(first[t] - pixels.column) * outputs * lanes;
                    tile.in = unit.inputs + static_cast<std::ptrdiff_t>(in / step) * channels * lanes;
                    tile.pixels = count[t];
                }
                multiply(tile);
            }
            gradients += tile.gradient_row * pixels.rows;
        }
    }
}

// Sums the lanes of all sums, and writes them where they belong.
DISTREAL_INLINE void write_result(const WeightGradientUnit& unit, float* result) {
    const WeightGradientCut& cut = unit.cut;
    const int all_taps = cut.rows_of_taps * cut.taps_of_row;
    const std::ptrdiff_t outputs_of_unit =
        cut.outputs.begin(unit.end_output_block) - cut.outputs.begin(unit.first_output_block);
    const std::ptrdiff_t inputs_of_unit =
        cut.inputs.begin(unit.end_input_block) - cut.inputs.begin(unit.first_input_block);
    const std::ptrdiff_t count = outputs_of_unit * inputs_of_unit * unit.taps;
    float* const flat = unit.sums;
    for (std::ptrdiff_t first = 0; first < count; first += lanes) {
        Vector values[lanes];
        DISTREAL_UNROLL
        for (int i = 0; i < lanes; ++i) {
            values[i] = load(unit.sums + (first + i) * lanes);
        }
        store(flat + first, sums_of_lanes<lanes>(values));
    }
    const float* sum = flat;
    for (int i = unit.first_input_block; i < unit.end_input_block; ++i) {
        for (int b = unit.first_output_block; b < unit.end_output_block; ++b) {
            for (int t = 0; t < unit.taps; ++t) {
                for (int o = cut.outputs.begin(b); o < cut.outputs.begin(b + 1); ++o) {
                    float* const row = result + static_cast<std::ptrdiff_t>(o) * unit.task.in_channels * all_taps;
                    for (int input = cut.inputs.begin(i); input < cut.inputs.begin(i + 1); ++input) {
                        const int tap = unit.first_tap + (cut.folded ? input / unit.task.in_channels : t);
                        const int channel = cut.folded ? input % unit.task.in_channels : input;
                        row[static_cast<std::ptrdiff_t>(channel) * all_taps + tap] = *sum++;
                    }
                }
            }
        }
    }
}

inline void weight_gradient(const WeightGradientTask<float>& task, int number, float* scratch) {
    const WeightGradientCut cut = cut_of(task);
    const WeightGradientScratch places = scratch_of(task, cut);
    const int panel = number % cut.panels.count;
    const int chunk = number / cut.panels.count % cut.chunks.count;
    const int group = number / cut.panels.count / cut.chunks.count % (cut.rows_of_taps * cut.taps.count);
    const int part = number / cut.panels.count / cut.chunks.count / (cut.rows_of_taps * cut.taps.count);
    const int first_tap = group / cut.taps.count * cut.taps_of_row + cut.taps.begin(group % cut.taps.count);
    const int taps = cut.taps.size(group % cut.taps.count);
    const WeightGradientUnit unit{task,
                                  cut,
                                  shape_of_row(task, first_tap, first_tap + (cut.folded ? cut.taps_of_row : taps)),
                                  first_tap,
                                  taps,
                                  cut.chunks.begin(chunk),
                                  cut.chunks.begin(chunk + 1),
                                  cut.panels.begin(panel),
                                  cut.panels.begin(panel + 1),
                                  scratch + places.sums,
                                  scratch + places.gradients,
                                  scratch + places.inputs};
    clear(unit.sums, (places.gradients - places.sums) / lanes);

    const std::int64_t rows = static_cast<std::int64_t>(task.blocks) * unit.shape.rows;
    const std::int64_t end = rows * (part + 1) / task.parts;
    const int rows_of_tile = rows_at_once(unit.shape);
    const int columns_of_tile = columns_at_once(unit.shape);
    for (std::int64_t row = rows * part / task.parts; row < end; row += rows_of_tile) {
        const int some_rows = end - row < rows_of_tile ? static_cast<int>(end - row) : rows_of_tile;
        for (int column = 0; column < unit.shape.outs; column += columns_of_tile) {
            const int left = unit.shape.outs - column;
            multiply_tile(unit, {row, some_rows, column, left < columns_of_tile ? left : columns_of_tile});
        }
    }
    write_result(unit, task.result + static_cast<std::ptrdiff_t>(part) * task.out_channels * task.in_channels *
                                         cut.rows_of_taps * cut.taps_of_row);
}

}  // namespace distreal::DISTREAL_SIMD
