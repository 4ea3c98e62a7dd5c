#pragma once
// Convolution, backward-weights: sums over pixels and images of the inputs under the window times the gradient.
//
// With images in the lanes, every sum would end in a reduction, and few sums would fit the registers. So a unit turns
// the pixels that it works on around: image by image, with channels side by side. There the inputs under a row of the
// window are contiguous, and a sum is a vector of inputs (of neighbouring taps, even) times one number of the gradient,
// or the other way round: the same innermost step as in a gather. A unit makes the sums of a chunk of outputs, a panel
// of inputs and some columns of the window.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/simd/transpose.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"
#include "kernels/simd/weight_gradient_cut.hpp"
#include "kernels/simd/weight_gradient_tile.hpp"

namespace distreal::DISTREAL_SIMD {

// One unit at work.
struct WeightGradientUnit {
    const WeightGradientTask<float>& task;
    const RowShape& shape;
    const TurnedLayout& layout;
    int first_column;
    int columns;
    int first_output;
    int outputs;
    int first_input;
    int inputs;
    std::ptrdiff_t sums_of_row;
    float* sums;  // [row of the window][block of vectors][number][vector of the block]
    float* outs;
    float* ins;
};

DISTREAL_INLINE void clear(float* to, std::ptrdiff_t floats) {
    std::ptrdiff_t i = 0;
    for (; i + lanes <= floats; i += lanes) {
        store(to + i, Vector{});
    }
    for (; i < floats; ++i) {
        to[i] = 0.0F;
    }
}

// A row of outputs, which is named by the output that the shape's tap makes first there, and a segment of it.
struct Segment {
    int block;  // of images
    int out;
    int first;
    int pixels;
};

DISTREAL_INLINE void turn_outs(const WeightGradientUnit& unit, const Segment& segment, int slot) {
    const int out = segment.out + unit.shape.first_out + segment.first;
    transpose_pixels(unit.outs + slot * lanes * unit.layout.out_run, unit.layout.out_run,
                     at(unit.task.gradient, segment.block, out) + unit.first_output * lanes,
                     unit.task.gradient.pixel_stride, segment.pixels, unit.outputs);
}

// The turned inputs of a segment, and which of them exist.
struct Inputs {
    int first;  // as the row's shape counts
    int count;
    int begin;  // as `first` counts
    int end;
};

DISTREAL_INLINE Inputs inputs_of(const WeightGradientUnit& unit, const Segment& segment) {
    const RowShape& shape = unit.shape;
    const int spacing = unit.layout.spacing;
    const int first = shape.window + segment.first * shape.in_step;
    const int count = (segment.pixels - 1) * (shape.in_step / spacing) + unit.columns;
    if (spacing > 1) {
        return {first, count, 0, count};  // of a single tap, and so all of them exist
    }
    const int begin = first < shape.begin ? shape.begin - first : 0;
    const int end = shape.end - first < count ? shape.end - first : count;
    return {first, count, begin, end};
}

// `reference` is the pixel from which the row's shape counts.
DISTREAL_INLINE void turn_ins(const WeightGradientUnit& unit, const Segment& segment, int reference, float* to) {
    const TurnedLayout& layout = unit.layout;
    const Inputs inputs = inputs_of(unit, segment);
    const int existing = inputs.end > inputs.begin ? inputs.end - inputs.begin : 0;
    const std::ptrdiff_t begin = existing > 0 ? static_cast<std::ptrdiff_t>(inputs.begin) * unit.inputs : 0;
    const std::ptrdiff_t end = begin + static_cast<std::ptrdiff_t>(existing) * unit.inputs;
    if (existing > 0) {
        transpose_pixels(
            to + begin, layout.in_run,
            at(unit.task.in, segment.block, reference + inputs.first + inputs.begin) + unit.first_input * lanes,
            unit.task.in.pixel_stride * layout.spacing, existing, unit.inputs);
    }
    for (int image = 0; image < lanes; ++image, to += layout.in_run) {
        clear(to, begin);
        clear(to + end, layout.in_run - end);
    }
}

// The run of a tap that makes this output first in its row; null: there is none.
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

DISTREAL_INLINE const Run* run_of_row(const WeightGradientUnit& unit, int tap_row, int out) {
    return run_at(runs_of(unit.task, tap_row, unit.shape.column), out);
}

DISTREAL_INLINE void turn_joined_ins(const WeightGradientUnit& unit, const Segment& segment, float* to) {
    const TurnedLayout& layout = unit.layout;
    const Inputs inputs = inputs_of(unit, segment);
    const int rows = unit.task.window->kernel[0];
    const float* from[most_rows];
    for (int r = 0; r < rows; ++r) {
        const Run* const run = run_of_row(unit, r, segment.out);
        from[r] =
            run == nullptr || inputs.end <= inputs.begin
                ? nullptr
                : at(unit.task.in, segment.block, run->in + inputs.first + inputs.begin) + unit.first_input * lanes;
    }
    transpose_columns(to, layout.in_run, from, rows, unit.task.in.pixel_stride * layout.spacing, inputs.count,
                      inputs.begin, inputs.end, unit.inputs);
    const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(inputs.count) * layout.channels;
    for (int image = 0; image < lanes; ++image, to += layout.in_run) {
        clear(to + end, layout.in_run - end);
    }
}

// Adds the products of turned outputs and turned inputs to the sums of one row of the window.
DISTREAL_INLINE void multiply_turned(const WeightGradientUnit& unit, const float* ins, int runs, int pixels,
                                     float* sums) {
    const TurnedLayout& layout = unit.layout;
    const Parts number_blocks = number_blocks_of(layout, unit.outputs);
    const Parts vector_blocks = vector_blocks_of(layout, unit.outputs);
    const std::ptrdiff_t run_floats = layout.in_run + layout.out_run;
    const Parts near_runs = parts_of(runs, run_floats > near_floats ? 1 : static_cast<int>(near_floats / run_floats));
    WeightGradientTile tile;
    tile.number_step = layout.vectors_of_in ? unit.outputs : layout.in_step;
    tile.vector_step = layout.vectors_of_in ? layout.in_step : unit.outputs;
    tile.number_run = layout.vectors_of_in ? layout.out_run : layout.in_run;
    tile.vector_run = layout.vectors_of_in ? layout.in_run : layout.out_run;
    tile.pixels = pixels;
    for (int part = 0; part < near_runs.count; ++part) {
        const float* const numbers = (layout.vectors_of_in ? unit.outs : ins) + near_runs.begin(part) * tile.number_run;
        const float* const vectors = (layout.vectors_of_in ? ins : unit.outs) + near_runs.begin(part) * tile.vector_run;
        tile.runs = near_runs.size(part);
        tile.sums = sums;
        for (int v = 0; v < vector_blocks.count; ++v) {
            tile.vectors = vectors + vector_blocks.begin(v) * lanes;
            for (int n = 0; n < number_blocks.count; ++n) {
                tile.numbers = numbers + number_blocks.begin(n);
                weight_gradient_function(number_blocks.size(n), vector_blocks.size(v))(tile);
                tile.sums += static_cast<std::ptrdiff_t>(number_blocks.size(n)) * vector_blocks.size(v) * lanes;
            }
        }
    }
}

// Rows of inputs that are turned around already.
struct KeptRows {
    int in[most_rows];
    std::int64_t used[most_rows];
    std::int64_t time;
};

// The place of this row among them; `found` says whether it is there, or to be turned around in the place of the one
// that was not used for longest.
DISTREAL_INLINE int keep_row(KeptRows& kept, int rows, int in, bool& found) {
    int place = 0;
    found = false;
    for (int r = 0; r < rows; ++r) {
        if (kept.in[r] == in) {
            place = r;
            found = true;
            break;
        }
        place = kept.used[r] < kept.used[place] ? r : place;
    }
    kept.in[place] = in;
    kept.used[place] = ++kept.time;
    return place;
}

DISTREAL_INLINE void add_row(const WeightGradientUnit& unit, KeptRows& kept, const Segment& segment) {
    turn_outs(unit, segment, 0);
    for (int r = 0; r < unit.layout.tap_rows; ++r) {
        const Run* const run = run_of_row(unit, r, segment.out);
        if (run == nullptr) {
            continue;
        }
        bool found = false;
        const int place = keep_row(kept, unit.layout.kept_rows, run->in, found);
        float* const ins = unit.ins + place * lanes * unit.layout.in_run;
        if (!found) {
            turn_ins(unit, segment, run->in, ins);
        }
        multiply_turned(unit, ins, lanes, segment.pixels, unit.sums + r * unit.sums_of_row);
    }
}

// The first row of outputs beyond `out` that any row of the window reaches. -1: there is none.
DISTREAL_INLINE int next_row(const WeightGradientTask<float>& task, const RowShape& shape, int out) {
    int next = -1;
    for (int row = 0; row < task.window->kernel[0]; ++row) {
        const std::vector<Run>& runs = runs_of(task, row, shape.column);
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

DISTREAL_INLINE int count_rows(const WeightGradientTask<float>& task, const RowShape& shape) {
    int rows = 0;
    if (shape.column >= 0) {
        for (int out = next_row(task, shape, -1); out >= 0; out = next_row(task, shape, out)) {
            ++rows;
        }
    }
    return rows;
}

// Rows begin..end-1 of the rows of all blocks of images, one segment of each, where `rows` are those of one block.
DISTREAL_INLINE void add_rows(const WeightGradientUnit& unit, std::int64_t begin, std::int64_t end, int rows,
                              int first_pixel) {
    const int left = unit.shape.outs - first_pixel;
    Segment segment{static_cast<int>(begin / rows), -1, first_pixel, left < segment_pixels ? left : segment_pixels};
    for (std::int64_t row = begin / rows * rows; row < begin; ++row) {
        segment.out = next_row(unit.task, unit.shape, segment.out);
    }
    KeptRows kept{};
    int slot = 0;
    for (std::int64_t row = begin; row < end; ++row) {
        if (unit.task.cancellation != nullptr && unit.task.cancellation->cancelled()) {
            return;
        }
        segment.out = next_row(unit.task, unit.shape, segment.out);
        if (row == begin || segment.out < 0) {
            if (segment.out < 0) {
                ++segment.block;
                segment.out = next_row(unit.task, unit.shape, -1);
            }
            for (int r = 0; r < most_rows; ++r) {
                kept.in[r] = -1;
            }
        }
        if (unit.layout.tap_rows > 1) {
            add_row(unit, kept, segment);
            continue;
        }
        float* const ins = unit.ins + slot * lanes * unit.layout.in_run;
        turn_outs(unit, segment, slot);
        if (unit.layout.joined) {
            turn_joined_ins(unit, segment, ins);
        } else {
            turn_ins(unit, segment, run_of_row(unit, 0, segment.out)->in, ins);
        }
        if (++slot == unit.layout.batch || row + 1 == end) {
            multiply_turned(unit, unit.ins, slot * lanes, segment.pixels, unit.sums);
            slot = 0;
        }
    }
}

// Where the weights lie that belong to the floats under a row of the window, one after the other: runs of inputs.
struct WeightWalk {
    std::ptrdiff_t at;
    int inputs;
    int rows;
    int all_columns;
    int all_taps;
    int input = 0;
    int row = 0;

    // Steps over that many floats of the run that it is in.
    DISTREAL_INLINE void next(int floats) {
        at += static_cast<std::ptrdiff_t>(floats) * all_taps;
        input += floats;
        if (input == inputs) {
            input = 0;
            at += all_columns - static_cast<std::ptrdiff_t>(inputs) * all_taps;
            if (++row == rows) {
                row = 0;
                at += 1 - static_cast<std::ptrdiff_t>(rows) * all_columns;
            }
        }
    }
};

// Spreads `count` floats over weights that are `step` apart.
DISTREAL_INLINE void spread_out(float* to, std::ptrdiff_t step, const float* from, int count) {
    if (step == 1) {
        int i = 0;
        for (; i + lanes <= count; i += lanes) {
            store(to + i, load(from + i));
        }
        for (; i < count; ++i) {
            to[i] = from[i];
        }
        return;
    }
    for (int i = 0; i < count; ++i, to += step) {
        *to = from[i];
    }
}

// Writes `count` floats from the one that the walk is at.
DISTREAL_INLINE void write_inputs(float* result, WeightWalk& walk, const float* sums, int count) {
    while (count > 0) {
        const int left = walk.inputs - walk.input;
        const int here = count < left ? count : left;
        spread_out(result + walk.at, walk.all_taps, sums, here);
        walk.next(here);
        sums += here;
        count -= here;
    }
}

DISTREAL_INLINE void write_result(const WeightGradientUnit& unit, float* result) {
    const TurnedLayout& layout = unit.layout;
    const Parts blocks = vector_blocks_of(layout, unit.outputs);
    const int all_columns = unit.task.window->kernel[1];
    const int all_taps = unit.task.window->taps();
    const std::ptrdiff_t output_step = static_cast<std::ptrdiff_t>(unit.task.in_channels) * all_taps;
    const int numbers = number_blocks_of(layout, unit.outputs).things;
    const int floats = layout.vectors_of_in ? layout.columns : unit.outputs;
    const std::ptrdiff_t first =
        unit.first_output * output_step + static_cast<std::ptrdiff_t>(unit.first_input) * all_taps + unit.first_column;
    const float* sums = unit.sums;
    for (int tap_row = 0; tap_row < layout.tap_rows; ++tap_row) {
        const WeightWalk start{first + tap_row * all_columns, unit.inputs,
                               layout.joined ? unit.task.window->kernel[0] : 1, all_columns, all_taps};
        WeightWalk walk = start;
        for (int v = 0; v < blocks.count; ++v) {
            const int begin = blocks.begin(v) * lanes;
            const int end = blocks.begin(v + 1) * lanes < floats ? blocks.begin(v + 1) * lanes : floats;
            WeightWalk after = walk;
            for (int n = 0; n < numbers; ++n) {
                if (layout.vectors_of_in) {
                    after = walk;
                    write_inputs(result + n * output_step, after, sums, end - begin);
                } else {
                    spread_out(result + walk.at + begin * output_step, output_step, sums, end - begin);
                    walk.next(1);
                }
                sums += blocks.size(v) * lanes;
            }
            walk = layout.vectors_of_in ? after : start;
        }
    }
}

inline int weight_gradient_units(const WeightGradientTask<float>& task) {
    const WeightGradientCut cut = cut_of(task);
    return task.parts * cut.columns.count * cut.outputs.count * cut.inputs.count;
}

inline std::size_t weight_gradient_scratch(const WeightGradientTask<float>& task) {
    const WeightGradientCut cut = cut_of(task);
    std::ptrdiff_t most = 0;
    for (int c = 0; c < cut.columns.count; ++c) {
        const RowShape shape = shape_of_rows(task, cut.columns.begin(c), cut.columns.begin(c + 1));
        for (int o = 0; o < cut.outputs.count; ++o) {
            for (int i = 0; i < cut.inputs.count; ++i) {
                const TurnedLayout layout =
                    layout_of(task, shape, cut.columns.size(c), cut.outputs.size(o), cut.inputs.size(i));
                const std::ptrdiff_t needed = scratch_of(layout, cut.outputs.size(o)).end;
                most = needed > most ? needed : most;
            }
        }
    }
    return static_cast<std::size_t>(most);
}

inline void weight_gradient(const WeightGradientTask<float>& task, int number, float* scratch) {
    const WeightGradientCut cut = cut_of(task);
    const int i = number % cut.inputs.count;
    const int o = number / cut.inputs.count % cut.outputs.count;
    const int c = number / (cut.inputs.count * cut.outputs.count) % cut.columns.count;
    const int part = number / (cut.inputs.count * cut.outputs.count * cut.columns.count);
    const RowShape shape = shape_of_rows(task, cut.columns.begin(c), cut.columns.begin(c + 1));
    const TurnedLayout layout = layout_of(task, shape, cut.columns.size(c), cut.outputs.size(o), cut.inputs.size(i));
    const WeightGradientScratch places = scratch_of(layout, cut.outputs.size(o));
    const WeightGradientUnit unit{task,
                                  shape,
                                  layout,
                                  cut.columns.begin(c),
                                  cut.columns.size(c),
                                  cut.outputs.begin(o),
                                  cut.outputs.size(o),
                                  cut.inputs.begin(i),
                                  cut.inputs.size(i),
                                  places.sums_of_row,
                                  scratch,
                                  scratch + places.outs,
                                  scratch + places.ins};
    clear(unit.sums, places.ins);
    const int rows = count_rows(task, shape);
    const std::int64_t all = static_cast<std::int64_t>(rows) * task.blocks;
    const std::int64_t begin = all * part / task.parts;
    const std::int64_t end = all * (part + 1) / task.parts;
    for (int first = 0; begin < end && first < shape.outs; first += segment_pixels) {
        add_rows(unit, begin, end, rows, first);
    }
    write_result(unit, task.result + static_cast<std::ptrdiff_t>(part) * task.out_channels * task.in_channels *
                                         task.window->taps());
}

}  // namespace distreal::DISTREAL_SIMD
