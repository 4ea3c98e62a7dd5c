#pragma once
// Convolution, backward-weights: sums over pixels and images of what is under the window times the gradient.
//
// With images in the lanes, every sum would end in a reduction, and few sums would fit the registers. So a unit turns
// the pixels that it works on around: image by image, with channels side by side. There the inputs under one row of the
// window are contiguous, and a sum is a vector of inputs (of neighbouring taps, even) times one number of the gradient:
// the same innermost step as in a gather. A unit makes the sums of a chunk of outputs, a panel of inputs and some taps.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/simd/transpose.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"
#include "kernels/simd/weight_gradient_tile.hpp"

namespace distreal::DISTREAL_SIMD {

#ifndef PI_
#define PI_ 64
#define CO_ 32
#define L1_ 6144
#endif
inline constexpr int panel_inputs = PI_;
inline constexpr int chunk_outputs = CO_;
inline constexpr int chunk_outputs_of_one_tap = 64;
inline constexpr int segment_pixels = 64;  // of a row of outputs, at once
inline constexpr int batch_pixels = 32;    // of several short rows, where that is possible
inline constexpr int most_rows = 8;        // of inputs, kept while rows of outputs need them again
inline constexpr int near_floats = L1_;    // what the nearest cache holds beside the sums

// A number of things in parts as equal as can be.
struct Parts {
    int things;
    int count;

    DISTREAL_INLINE int begin(int part) const { return part_begin(things, part, count); }
    DISTREAL_INLINE int size(int part) const { return begin(part + 1) - begin(part); }
    DISTREAL_INLINE int largest() const { return (things + count - 1) / count; }
};

DISTREAL_INLINE constexpr int parts_of(int things, int most) { return (things + most - 1) / most; }

// How a task is cut into units.
struct WeightGradientCut {
    int tap_rows;
    int tap_columns;
    Parts groups;   // of tap columns: neighbours, whose inputs are contiguous
    Parts outputs;  // in blocks that fit the registers
    Parts chunks;   // of blocks of outputs
    Parts panels;   // of inputs
};

DISTREAL_INLINE WeightGradientCut cut_of(const WeightGradientTask<float>& task) {
    constexpr int most_neighbours = 8;
    const int rows = task.window->kernel[0];
    const int columns = task.window->kernel[1];
    const Parts outputs{task.out_channels, parts_of(task.out_channels, most_numbers)};
    const int chunk = (rows * columns == 1 ? chunk_outputs_of_one_tap : chunk_outputs) / most_numbers;
    return {rows,
            columns,
            {columns, task.window->dilation[1] == 1 ? parts_of(columns, most_neighbours) : columns},
            outputs,
            {outputs.count, parts_of(outputs.count, chunk)},
            {task.in_channels, parts_of(task.in_channels, panel_inputs)}};
}

inline int weight_gradient_units(const WeightGradientTask<float>& task) {
    const WeightGradientCut cut = cut_of(task);
    return task.parts * cut.groups.count * cut.chunks.count * cut.panels.count;
}

// What a group of tap columns reads along any row, as pixels counted from the first one that the group's first tap
// with any run reads (inputs) and makes (outputs) there.
struct RowShape {
    int tap_column;  // of that tap; -1: there is none
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
    for (int row = 0; row < task.window->kernel[0]; ++row) {
        const Run* reference = nullptr;
        int end_out = 0;
        for (int column = first_column; column < end_column; ++column) {
            const std::vector<Run>& runs = runs_of(task, row, column);
            if (runs.size() == 0) {
                continue;
            }
            const Run& run = runs[0];
            if (reference == nullptr) {
                reference = &run;
                shape.tap_column = column;
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
        if (reference != nullptr) {
            shape.outs = end_out - shape.first_out;
            shape.window = shape.first_out * shape.in_step - (shape.tap_column - first_column);
            return shape;
        }
    }
    return shape;
}

// How pixels lie once they are turned around.
struct TurnedLayout {
    int segment;            // outputs of a row that are taken at once
    int batch;              // rows of outputs that are taken at once: more than one only where windows have one row
    int in_pixels;          // inputs kept for a segment
    int in_spacing;         // pixels from one kept input to the next
    int in_step;            // kept inputs from the window of one output to that of the next
    int vectors;            // of inputs under a row of the window, of one group and panel
    bool mixed;             // whether sums of different tap rows are made at once
    int rows;               // of inputs that are kept
    std::ptrdiff_t in_run;  // floats for each image
    std::ptrdiff_t gradient_run;
};

DISTREAL_INLINE std::ptrdiff_t whole_vectors(std::ptrdiff_t floats) { return (floats + lanes - 1) / lanes * lanes; }

DISTREAL_INLINE TurnedLayout layout_of(const WeightGradientCut& cut, const RowShape& shape, int taps, int inputs) {
    TurnedLayout layout{};
    layout.segment = shape.outs < segment_pixels ? shape.outs : segment_pixels;
    layout.batch = cut.tap_rows > 1 || shape.outs <= 0 || shape.outs > batch_pixels ? 1 : batch_pixels / shape.outs;
    layout.in_spacing = taps == 1 ? shape.in_step : 1;
    layout.in_step = shape.in_step / layout.in_spacing;
    layout.in_pixels = (layout.segment - 1) * layout.in_step + taps;
    layout.vectors = (taps * inputs + lanes - 1) / lanes;
    layout.mixed =
        cut.tap_rows > 1 && cut.tap_rows <= most_rows && layout.vectors < vectors_with(cut.outputs.largest());
    layout.rows = cut.tap_rows == 1 ? layout.batch : cut.tap_rows < most_rows ? cut.tap_rows : most_rows;
    // Vectors may reach beyond the last window, and what they read there must not be slow to multiply.
    layout.in_run = whole_vectors(static_cast<std::ptrdiff_t>(layout.in_pixels) * inputs) + lanes;
    layout.gradient_run = whole_vectors(static_cast<std::ptrdiff_t>(layout.segment) * cut.outputs.largest());
    return layout;
}

// Floats from the beginning of a thread's scratch.
struct WeightGradientScratch {
    std::ptrdiff_t gradients;  // the sums come first
    std::ptrdiff_t inputs;
    std::ptrdiff_t end;
};

DISTREAL_INLINE WeightGradientScratch scratch_of(const WeightGradientCut& cut, const TurnedLayout& layout) {
    const std::ptrdiff_t blocks = cut.chunks.largest();
    const std::ptrdiff_t outputs = blocks * cut.outputs.largest();
    const std::ptrdiff_t in_row = layout.in_run * lanes;
    WeightGradientScratch scratch{};
    scratch.gradients = outputs * cut.tap_rows * layout.vectors * lanes;
    scratch.inputs = scratch.gradients + blocks * layout.batch * lanes * layout.gradient_run + lanes;
    scratch.end = scratch.inputs + (layout.rows + (layout.mixed ? 1 : 0)) * in_row;
    return scratch;
}

inline std::size_t weight_gradient_scratch(const WeightGradientTask<float>& task) {
    const WeightGradientCut cut = cut_of(task);
    std::ptrdiff_t most = 0;
    for (int group = 0; group < cut.groups.count; ++group) {
        const RowShape shape = shape_of_rows(task, cut.groups.begin(group), cut.groups.begin(group + 1));
        for (int panel = 0; panel < cut.panels.count; ++panel) {
            const TurnedLayout layout = layout_of(cut, shape, cut.groups.size(group), cut.panels.size(panel));
            const std::ptrdiff_t needed = scratch_of(cut, layout).end;
            most = needed > most ? needed : most;
        }
    }
    return static_cast<std::size_t>(most);
}

DISTREAL_INLINE void clear(float* to, std::ptrdiff_t floats) {
    std::ptrdiff_t i = 0;
    for (; i + lanes <= floats; i += lanes) {
        store(to + i, Vector{});
    }
    for (; i < floats; ++i) {
        to[i] = 0.0F;
    }
}

// One unit at work.
struct WeightGradientUnit {
    const WeightGradientTask<float>& task;
    const WeightGradientCut& cut;
    const RowShape& shape;
    const TurnedLayout& layout;
    int first_tap_column;
    int taps;
    int first_block;  // of outputs
    int end_block;
    int first_input;
    int inputs;
    float* sums;
    float* gradients;
    float* in_rows;
};

// Turns the gradients of one row around, to be row `slot` of a batch.
DISTREAL_INLINE void turn_gradients(const WeightGradientUnit& unit, int block, int out, int pixels, int slot) {
    float* to = unit.gradients + slot * lanes * unit.layout.gradient_run;
    const std::ptrdiff_t block_step = unit.layout.batch * lanes * unit.layout.gradient_run;
    for (int b = unit.first_block; b < unit.end_block; ++b, to += block_step) {
        transpose_pixels(to, unit.layout.gradient_run,
                         at(unit.task.gradient, block, out) + unit.cut.outputs.begin(b) * lanes,
                         unit.task.gradient.pixel_stride, pixels, unit.cut.outputs.size(b));
    }
}

// Turns the inputs around that the windows of `pixels` outputs of one row read, from output `first` on; `reference` is
// the pixel from which the row's shape counts.
DISTREAL_INLINE void turn_inputs(const WeightGradientUnit& unit, int block, int reference, int first, int pixels,
                                 float* to) {
    const TurnedLayout& layout = unit.layout;
    const RowShape& shape = unit.shape;
    const int begin = shape.window + first * shape.in_step;
    const int count = (pixels - 1) * layout.in_step + unit.taps;
    int before = 0;
    int inside = count;
    if (layout.in_spacing == 1) {
        before = begin < shape.begin ? shape.begin - begin : 0;
        before = before < count ? before : count;
        const int rest = shape.end - begin - before;
        inside = rest < count - before ? rest : count - before;
        inside = inside > 0 ? inside : 0;
    }
    if (inside > 0) {
        transpose_pixels(to + static_cast<std::ptrdiff_t>(before) * unit.inputs, layout.in_run,
                         at(unit.task.in, block, reference + begin + before) + unit.first_input * lanes,
                         unit.task.in.pixel_stride * layout.in_spacing, inside, unit.inputs);
    }
    const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(before + inside) * unit.inputs;
    for (int image = 0; image < lanes; ++image, to += layout.in_run) {
        clear(to, static_cast<std::ptrdiff_t>(before) * unit.inputs);
        clear(to + end, layout.in_run - end);
    }
}

// All sums of some tap rows, or of a single one, over what is turned around. `rows` are the tap rows' inputs.
DISTREAL_INLINE void multiply_rows(const WeightGradientUnit& unit, const float* const* rows, int tap_rows, int runs,
                                   int pixels, float* sums) {
    const TurnedLayout& layout = unit.layout;
    const int vectors = tap_rows * layout.vectors;
    const Parts blocks{vectors, parts_of(vectors, vectors_with(unit.cut.outputs.largest()))};
    const std::ptrdiff_t floats_of_run = layout.in_run * tap_rows + static_cast<std::ptrdiff_t>(pixels) * chunk_outputs;
    const int near = floats_of_run > near_floats ? 1 : static_cast<int>(near_floats / floats_of_run);
    const Parts near_runs{runs, parts_of(runs, near)};
    WeightGradientTile tile;
    tile.gradient_run = layout.gradient_run;
    tile.in_run = layout.in_run;
    tile.in_step = static_cast<std::ptrdiff_t>(layout.in_step) * unit.inputs;
    tile.pixels = pixels;
    for (int part = 0; part < near_runs.count; ++part) {
        const int first_run = near_runs.begin(part);
        tile.runs = near_runs.size(part);
        tile.sums = sums;
        for (int v = 0; v < blocks.count; ++v) {
            const int first = blocks.begin(v);
            const int some = blocks.size(v);
            for (int i = 0; i < some; ++i) {
                tile.in[i] = rows[(first + i) / layout.vectors] + (first + i) % layout.vectors * lanes +
                             first_run * layout.in_run;
            }
            tile.gradient = unit.gradients + first_run * layout.gradient_run;
            for (int b = unit.first_block; b < unit.end_block; ++b) {
                const int outputs = unit.cut.outputs.size(b);
                weight_gradient_function(outputs, some)(tile);
                tile.sums += static_cast<std::ptrdiff_t>(outputs) * some * lanes;
                tile.gradient += layout.batch * lanes * layout.gradient_run;
            }
        }
    }
}

// Rows of inputs that are turned around already.
struct KeptRows {
    std::int64_t key[most_rows];
    std::int64_t used[most_rows];
    std::int64_t time;
};

DISTREAL_INLINE int find_row(KeptRows& kept, int rows, std::int64_t key) {
    for (int r = 0; r < rows; ++r) {
        if (kept.key[r] == key) {
            kept.used[r] = kept.time;
            return r;
        }
    }
    return -1;
}

DISTREAL_INLINE int replace_row(KeptRows& kept, int rows, std::int64_t key) {
    int oldest = 0;
    for (int r = 1; r < rows; ++r) {
        oldest = kept.used[r] < kept.used[oldest] ? r : oldest;
    }
    kept.key[oldest] = key;
    kept.used[oldest] = kept.time;
    return oldest;
}

// The run of a tap's row that makes this output; null: there is none.
DISTREAL_INLINE const Run* run_at(const std::vector<Run>& runs, int out) {
    std::size_t begin = 0;
    std::size_t end = runs.size();
    while (begin < end) {
        const std::size_t middle = (begin + end) / 2;
        if (runs[middle].out < out) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin < runs.size() && runs[begin].out == out ? &runs[begin] : nullptr;
}

// The first row of outputs beyond `out` that any tap row reaches; rows are named by the output that the shape's tap
// makes first. -1: there is none.
DISTREAL_INLINE int next_row(const WeightGradientTask<float>& task, const RowShape& shape, int out) {
    int next = -1;
    for (int row = 0; row < task.window->kernel[0]; ++row) {
        const std::vector<Run>& runs = runs_of(task, row, shape.tap_column);
        std::size_t begin = 0;
        std::size_t end = runs.size();
        while (begin < end) {
            const std::size_t middle = (begin + end) / 2;
            if (runs[middle].out <= out) {
                begin = middle + 1;
            } else {
                end = middle;
            }
        }
        if (begin < runs.size() && (next < 0 || runs[begin].out < next)) {
            next = runs[begin].out;
        }
    }
    return next;
}

// A row of outputs of a window of several rows: the rows of inputs that it shares with other rows of outputs are kept.
DISTREAL_INLINE void add_row(const WeightGradientUnit& unit, KeptRows& kept, int block, int out, int first,
                             int pixels) {
    const TurnedLayout& layout = unit.layout;
    const std::ptrdiff_t row_floats = layout.in_run * lanes;
    const std::ptrdiff_t sums_of_row =
        static_cast<std::ptrdiff_t>(unit.cut.outputs.begin(unit.end_block) - unit.cut.outputs.begin(unit.first_block)) *
        layout.vectors * lanes;
    const float* rows[most_rows] = {};
    turn_gradients(unit, block, out + unit.shape.first_out + first, pixels, 0);
    ++kept.time;
    if (layout.mixed) {
        // Rows that are there already must outlive those that are still missing.
        for (int r = 0; r < unit.cut.tap_rows; ++r) {
            const Run* const run = run_at(runs_of(unit.task, r, unit.shape.tap_column), out);
            if (run != nullptr) {
                find_row(kept, layout.rows, run->in);
            }
        }
    }
    for (int r = 0; r < unit.cut.tap_rows; ++r) {
        const Run* const run = run_at(runs_of(unit.task, r, unit.shape.tap_column), out);
        const float* in = unit.in_rows + layout.rows * row_floats;
        if (run != nullptr) {
            int slot = find_row(kept, layout.rows, run->in);
            if (slot < 0) {
                slot = replace_row(kept, layout.rows, run->in);
                turn_inputs(unit, block, run->in, first, pixels, unit.in_rows + slot * row_floats);
            }
            in = unit.in_rows + slot * row_floats;
        }
        if (layout.mixed) {
            rows[r] = in;
        } else if (run != nullptr) {
            multiply_rows(unit, &in, 1, lanes, pixels, unit.sums + r * sums_of_row);
            ++kept.time;
        }
    }
    if (layout.mixed) {
        multiply_rows(unit, rows, unit.cut.tap_rows, lanes, pixels, unit.sums);
    }
}

// Rows [begin, end) of all rows of one block of images.
DISTREAL_INLINE void add_rows(const WeightGradientUnit& unit, int block, int begin, int end) {
    for (int first = 0; first < unit.shape.outs; first += segment_pixels) {
        const int left = unit.shape.outs - first;
        const int pixels = left < segment_pixels ? left : segment_pixels;
        KeptRows kept{};
        for (int r = 0; r < most_rows; ++r) {
            kept.key[r] = -1;
        }
        int out = -1;
        for (int row = 0; row < end; ++row) {
            out = next_row(unit.task, unit.shape, out);
            if (row >= begin) {
                add_row(unit, kept, block, out, first, pixels);
            }
        }
    }
}

// The same for windows of one row, which share nothing: several rows at once, if they are short.
DISTREAL_INLINE void add_batches(const WeightGradientUnit& unit, std::int64_t begin, std::int64_t end) {
    const std::vector<Run>& runs = runs_of(unit.task, 0, unit.shape.tap_column);
    const auto rows = static_cast<std::int64_t>(runs.size());
    for (int first = 0; first < unit.shape.outs; first += segment_pixels) {
        const int left = unit.shape.outs - first;
        const int pixels = left < segment_pixels ? left : segment_pixels;
        for (std::int64_t row = begin; row < end; row += unit.layout.batch) {
            const int some = end - row < unit.layout.batch ? static_cast<int>(end - row) : unit.layout.batch;
            for (int r = 0; r < some; ++r) {
                const int block = static_cast<int>((row + r) / rows);
                const Run& run = runs[static_cast<std::size_t>((row + r) % rows)];
                turn_gradients(unit, block, run.out + unit.shape.first_out + first, pixels, r);
                turn_inputs(unit, block, run.in, first, pixels, unit.in_rows + r * lanes * unit.layout.in_run);
            }
            const float* const in = unit.in_rows;
            multiply_rows(unit, &in, 1, some * lanes, pixels, unit.sums);
        }
    }
}

DISTREAL_INLINE void write_result(const WeightGradientUnit& unit, float* result) {
    const WeightGradientCut& cut = unit.cut;
    const TurnedLayout& layout = unit.layout;
    const int all_taps = cut.tap_rows * cut.tap_columns;
    const int group_rows = layout.mixed ? cut.tap_rows : 1;
    const int vectors = group_rows * layout.vectors;
    const Parts blocks{vectors, parts_of(vectors, vectors_with(cut.outputs.largest()))};
    const float* sum = unit.sums;
    for (int group = 0; group < cut.tap_rows; group += group_rows) {
        for (int v = 0; v < blocks.count; ++v) {
            for (int o = cut.outputs.begin(unit.first_block); o < cut.outputs.begin(unit.end_block); ++o) {
                float* const to = result + static_cast<std::ptrdiff_t>(o) * unit.task.in_channels * all_taps;
                for (int i = blocks.begin(v); i < blocks.begin(v + 1); ++i, sum += lanes) {
                    const int tap = (group + i / layout.vectors) * cut.tap_columns + unit.first_tap_column;
                    int number = i % layout.vectors * lanes;
                    for (int lane = 0; lane < lanes && number < unit.taps * unit.inputs; ++lane, ++number) {
                        const int channel = unit.first_input + number % unit.inputs;
                        to[static_cast<std::ptrdiff_t>(channel) * all_taps + tap + number / unit.inputs] = sum[lane];
                    }
                }
            }
        }
    }
}

inline void weight_gradient(const WeightGradientTask<float>& task, int number, float* scratch) {
    const WeightGradientCut cut = cut_of(task);
    const int panel = number % cut.panels.count;
    const int chunk = number / cut.panels.count % cut.chunks.count;
    const int group = number / (cut.panels.count * cut.chunks.count) % cut.groups.count;
    const int part = number / (cut.panels.count * cut.chunks.count * cut.groups.count);
    const int taps = cut.groups.size(group);
    const RowShape shape = shape_of_rows(task, cut.groups.begin(group), cut.groups.begin(group + 1));
    const TurnedLayout layout = layout_of(cut, shape, taps, cut.panels.size(panel));
    const WeightGradientScratch places = scratch_of(cut, layout);
    const WeightGradientUnit unit{task,
                                  cut,
                                  shape,
                                  layout,
                                  cut.groups.begin(group),
                                  taps,
                                  cut.chunks.begin(chunk),
                                  cut.chunks.begin(chunk + 1),
                                  cut.panels.begin(panel),
                                  cut.panels.size(panel),
                                  scratch,
                                  scratch + places.gradients,
                                  scratch + places.inputs};
    clear(unit.sums, places.gradients);
    if (layout.mixed) {
        clear(unit.in_rows + layout.rows * lanes * layout.in_run, lanes * layout.in_run);
    }
    int rows = 0;
    if (shape.tap_column >= 0) {
        for (int out = next_row(task, shape, -1); out >= 0; out = next_row(task, shape, out)) {
            ++rows;
        }
    }
    const std::int64_t all = static_cast<std::int64_t>(rows) * task.blocks;
    const std::int64_t begin = all * part / task.parts;
    const std::int64_t end = all * (part + 1) / task.parts;
    if (cut.tap_rows == 1) {
        add_batches(unit, begin, end);
    } else {
        for (std::int64_t row = begin; row < end;) {
            const int block = static_cast<int>(row / rows);
            const std::int64_t end_here = (block + 1) * static_cast<std::int64_t>(rows);
            const std::int64_t until = end < end_here ? end : end_here;
            add_rows(unit, block, static_cast<int>(row % rows),
                     static_cast<int>(until - block * static_cast<std::int64_t>(rows)));
            row = until;
        }
    }
    write_result(unit, task.result + static_cast<std::ptrdiff_t>(part) * task.out_channels * task.in_channels *
                                         cut.tap_rows * cut.tap_columns);
}

}  // namespace distreal::DISTREAL_SIMD
