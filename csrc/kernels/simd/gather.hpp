#pragma once
// Convolution, forward and backward-data: blocks of outputs times a few positions at once, all in registers.

#include <cstddef>

#include "kernels/kernels.hpp"
#include "kernels/simd/activations.hpp"
#include "kernels/simd/multiply.hpp"
#include "kernels/simd/pack.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// A few positions of one class, and a block of outputs.
struct GatherTile {
    const Tap* taps;
    const Tap* end_taps;
    std::ptrdiff_t pixel_stride;  // of what is read
    const float* soon;            // pixels that will be read next, to be fetched by then: one for each tap
    std::ptrdiff_t channels;      // read at each pixel, times lanes
    std::ptrdiff_t tap_step;      // of the weights
    const float* weights;
    const float* bias;  // of the block's outputs, as all that follows by output
    bool accumulate;
    bool moments;
    const ThroughActivation<float>* through;
    const float* scale;
    const float* shift;
    const float* mean;
    Vector* first_sums;
    Vector* second_sums;
    const float* from[most_vectors];  // the pixel that the class's first tap reads
    float* to[most_vectors];
    const float* live[most_vectors];  // null: all lanes
    const float* y[most_vectors];
};

template <int outputs, int positions>
DISTREAL_INLINE void add_moments(const GatherTile& tile, const Vector (&sums)[outputs][positions]) {
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        Vector first = tile.first_sums[o];
        Vector second = tile.second_sums[o];
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            const Vector counted = tile.live[v] == nullptr ? sums[o][v] : sums[o][v] * load(tile.live[v]);
            first += counted;
            second = multiply_add(counted, sums[o][v], second);
        }
        tile.first_sums[o] = first;
        tile.second_sums[o] = second;
    }
}

template <Activation activation, int outputs, int positions>
DISTREAL_INLINE void mask_and_add(const GatherTile& tile, Vector (&sums)[outputs][positions]) {
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        const Vector scale = spread(tile.scale[o]);
        const Vector shift = spread(tile.shift[o]);
        const Vector mean = spread(tile.mean[o]);
        Vector first = tile.first_sums[o];
        Vector second = tile.second_sums[o];
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            const Vector y = load(tile.y[v] + o * lanes);
            sums[o][v] = masked_by<activation, false>(sums[o][v], multiply_add(y, scale, shift));
            first += sums[o][v];
            second = multiply_add(sums[o][v], y - mean, second);
        }
        tile.first_sums[o] = first;
        tile.second_sums[o] = second;
    }
}

// What happens to sums before they are written.
template <int outputs, int positions>
DISTREAL_INLINE void finish(const GatherTile& tile, Vector (&sums)[outputs][positions]) {
    if (tile.bias != nullptr) {
        DISTREAL_UNROLL
        for (int o = 0; o < outputs; ++o) {
            const Vector bias = spread(tile.bias[o]);
            DISTREAL_UNROLL
            for (int v = 0; v < positions; ++v) {
                sums[o][v] += bias;
            }
        }
    }
    if (tile.accumulate) {
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            DISTREAL_UNROLL
            for (int o = 0; o < outputs; ++o) {
                sums[o][v] += load(tile.to[v] + o * lanes);
            }
        }
    }
    if (tile.through != nullptr) {
        switch (tile.through->activation) {
            case Activation::relu:
                mask_and_add<Activation::relu>(tile, sums);
                break;
            case Activation::relu6:
                mask_and_add<Activation::relu6>(tile, sums);
                break;
            default:
                mask_and_add<Activation::none>(tile, sums);
        }
    } else if (tile.moments) {
        add_moments(tile, sums);
    }
    DISTREAL_UNROLL
    for (int v = 0; v < positions; ++v) {
        DISTREAL_UNROLL
        for (int o = 0; o < outputs; ++o) {
            store(tile.to[v] + o * lanes, sums[o][v]);
        }
    }
}

template <int outputs, int positions>
[[gnu::noinline]] void gather_tile(const GatherTile& tile) {
    Vector sums[outputs][positions];
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            sums[o][v] = Vector{};
        }
    }
    const GatherTile* of_tap = &tile;
    for (const Tap* tap = tile.taps; tap != tile.end_taps; ++tap) {
        // Read the tile anew for every tap, or more addresses than there are registers are kept for the innermost loop.
        asm volatile("" : "+r"(of_tap) : : "memory");
        const float* weights = of_tap->weights + tap->index * of_tap->tap_step;
        const std::ptrdiff_t offset = tap->offset * of_tap->pixel_stride;
        const std::ptrdiff_t channels = of_tap->channels;
        const float* from[positions];
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            from[v] = of_tap->from[v] + offset;
        }
        const float* const soon = of_tap->soon + (tap - of_tap->taps) * channels;
        for (std::ptrdiff_t c = 0; c != channels; c += lanes) {
            __builtin_prefetch(soon + c);
            Vector x[positions];
            DISTREAL_UNROLL
            for (int v = 0; v < positions; ++v) {
                x[v] = load(from[v] + c);
                pin(x[v]);
            }
            add_products(sums, weights, x);
            weights += padded_outputs(outputs);
        }
    }
    finish(tile, sums);
}

using GatherFunction = void (*)(const GatherTile&);

template <int outputs, int... positions>
DISTREAL_INLINE GatherFunction gather_function(int count, std::integer_sequence<int, positions...> /*all*/) {
    static constexpr GatherFunction functions[] = {gather_tile<outputs, positions + 1>...};
    return functions[count - 1];
}

template <int outputs>
DISTREAL_INLINE GatherFunction gather_function(int positions) {
    return gather_function<outputs>(positions, std::make_integer_sequence<int, vectors_with(outputs)>{});
}

DISTREAL_INLINE GatherFunction gather_function(int outputs, int positions) {
    if constexpr (most_numbers > 6) {
        if (outputs == 8) {
            return gather_function<8>(positions);
        }
        if (outputs == 7) {
            return gather_function<7>(positions);
        }
    }
    switch (outputs) {
        case 6:
            return gather_function<6>(positions);
        case 5:
            return gather_function<5>(positions);
        case 4:
            return gather_function<4>(positions);
        case 3:
            return gather_function<3>(positions);
        case 2:
            return gather_function<2>(positions);
        default:
            return gather_function<1>(positions);
    }
}

// The next positions of a class: as many as fit, with the last two groups alike.
DISTREAL_INLINE int next_group(std::int64_t left, int most) {
    if (left >= 2 * most || left == most) {
        return most;
    }
    const int few = static_cast<int>(left);
    return few > most ? (few + 1) / 2 : few;
}

// Blocks of outputs that are made one after the other for the same few positions, whose inputs then stay near; the
// sums over a unit are kept for all of them.
inline constexpr int panel_blocks = 16;
inline constexpr int panel_outputs = panel_blocks * most_numbers;

struct PanelSums {
    Vector first[panel_outputs + lanes];  // store_sums reads whole groups of lanes
    Vector second[panel_outputs + lanes];
};

struct Panel {
    OutputBlocks blocks;
    int first_block;
    int end_block;
    PanelSums* sums;
};

DISTREAL_INLINE void gather_panel_at(const GatherTask<float>& task, const Panel& panel, GatherTile& tile, int positions,
                                     int furthest) {
    const int first = panel.blocks.begin(panel.first_block);
    std::ptrdiff_t begin = packed_begin(panel.blocks, panel.first_block, task.from_channels, task.gather->taps);
    // Unless pixels are read by the next positions, these are the ones after those that are read now.
    const std::ptrdiff_t taps = tile.end_taps - tile.taps;
    const float* soon = tile.from[positions - 1] + (furthest + 1) * tile.pixel_stride;
    const float* const end_soon = soon + positions * tile.pixel_stride;
    tile.soon = soon;
    int done = 0;
    for (int b = panel.first_block; b < panel.end_block; ++b) {
        const int outputs = panel.blocks.size(b);
        tile.tap_step = static_cast<std::ptrdiff_t>(task.from_channels) * padded_outputs(outputs);
        tile.weights = task.packed + begin;
        begin += tile.tap_step * task.gather->taps;
        tile.bias = task.bias == nullptr ? nullptr : task.bias + first + done;
        if (task.through != nullptr) {
            tile.scale = task.through->scale + first + done;
            tile.shift = task.through->shift + first + done;
            tile.mean = task.through->mean + first + done;
        }
        tile.first_sums = panel.sums->first + done;
        tile.second_sums = panel.sums->second + done;
        gather_function(outputs, positions)(tile);
        for (int v = 0; v < positions; ++v) {
            tile.to[v] += outputs * lanes;
            tile.y[v] += outputs * lanes;
        }
        soon += taps * tile.channels;
        tile.soon = soon < end_soon ? soon : tile.from[0];
        done += outputs;
    }
}

// All positions of a class that a unit works on.
DISTREAL_INLINE void gather_class(const GatherTask<float>& task, const Share& share, const TapClass& of_class,
                                  const Panel& panel, GatherTile& tile) {
    const Span band = band_of(of_class.positions.size(), task.cut, share.band);
    const int first = panel.blocks.begin(panel.first_block);
    const int most = vectors_with((panel.blocks.outputs + panel.blocks.count - 1) / panel.blocks.count);
    tile.taps = of_class.taps.data();
    tile.end_taps = tile.taps + of_class.taps.size();
    const int offset = of_class.taps.empty() ? 0 : of_class.taps.back().offset;
    const int furthest = offset > 0 ? offset : 0;
    std::int64_t left = static_cast<std::int64_t>(band.end - band.begin) * (share.end_block - share.first_block);
    int block = share.first_block;
    int i = band.begin;
    while (left > 0) {
        const int group = next_group(left, most);
        for (int v = 0; v < group; ++v) {
            const Position& position = of_class.positions[static_cast<std::size_t>(i)];
            tile.from[v] = at(task.from, block, position.from);
            tile.to[v] = at(task.to, block, position.to) + first * lanes;
            tile.live[v] = task.live == nullptr ? nullptr : task.live + static_cast<std::ptrdiff_t>(block) * lanes;
            if (task.through != nullptr) {
                tile.y[v] = at(task.through->y, block, position.to) + first * lanes;
            }
            if (++i == band.end) {
                i = band.begin;
                ++block;
            }
        }
        gather_panel_at(task, panel, tile, group, furthest);
        left -= group;
    }
}

inline void gather(const GatherTask<float>& task, int unit) {
    const Share share = share_of(task.cut, unit);
    float* const all_sums = task.through != nullptr ? task.through->sums : task.moments;
    float* const of_unit =
        all_sums == nullptr ? nullptr : all_sums + static_cast<std::ptrdiff_t>(unit) * 2 * task.to_channels;
    GatherTile tile{};
    tile.pixel_stride = task.from.pixel_stride;
    tile.channels = static_cast<std::ptrdiff_t>(task.from_channels) * lanes;
    tile.accumulate = task.accumulate;
    tile.moments = task.moments != nullptr;
    tile.through = task.through;

    PanelSums sums;
    const OutputBlocks blocks = output_blocks(task.to_channels);
    const int panels = (blocks.count + panel_blocks - 1) / panel_blocks;
    for (int p = 0; p < panels; ++p) {
        const Panel panel{blocks, part_begin(blocks.count, p, panels), part_begin(blocks.count, p + 1, panels), &sums};
        const int first = blocks.begin(panel.first_block);
        const int outputs = blocks.begin(panel.end_block) - first;
        for (int o = 0; of_unit != nullptr && o < outputs + lanes; ++o) {
            sums.first[o] = Vector{};
            sums.second[o] = Vector{};
        }
        for (std::size_t c = 0; c < task.gather->classes.size(); ++c) {
            gather_class(task, share, task.gather->classes[c], panel, tile);
        }
        if (of_unit != nullptr) {
            store_sums(of_unit + first, sums.first, outputs);
            store_sums(of_unit + task.to_channels + first, sums.second, outputs);
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
