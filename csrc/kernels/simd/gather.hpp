#pragma once
// Convolution, forward and backward-data: blocks of outputs times a few positions at once, all in registers.

#include <cstddef>

#include "kernels/kernels.hpp"
#include "kernels/simd/activations.hpp"
#include "kernels/simd/pack.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// How many positions go with a block of outputs, so that sums, inputs and weights fill the registers without spilling.
DISTREAL_INLINE constexpr int positions_with(int outputs) {
    constexpr int wide[] = {0, 8, 8, 7, 6, 4, 4, 3, 3};
    constexpr int narrow[] = {0, 8, 5, 4, 3, 2, 2};
    return registers == 32 ? wide[outputs] : narrow[outputs];
}

inline constexpr int most_positions = 8;

// A few positions of one class, and a block of outputs.
struct GatherTile {
    const Tap* taps;
    const Tap* end_taps;
    std::ptrdiff_t pixel_stride;  // of what is read
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
    const float* from[most_positions];  // the pixel that the class's first tap reads
    float* to[most_positions];
    const float* live[most_positions];  // null: all lanes
    const float* y[most_positions];
};

template <int outputs, int positions>
DISTREAL_INLINE void multiply_channel(Vector (&sums)[outputs][positions], const Vector (&x)[positions],
                                      const float* weights) {
#if defined(__aarch64__)
    constexpr int quads = padded_outputs(outputs) / 4;
    float32x4_t w[quads];
    DISTREAL_UNROLL
    for (int j = 0; j < quads; ++j) {
        w[j] = vld1q_f32(weights + 4 * j);
    }
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            switch (o % 4) {
                case 0:
                    sums[o][v] = vfmaq_laneq_f32(sums[o][v], x[v], w[o / 4], 0);
                    break;
                case 1:
                    sums[o][v] = vfmaq_laneq_f32(sums[o][v], x[v], w[o / 4], 1);
                    break;
                case 2:
                    sums[o][v] = vfmaq_laneq_f32(sums[o][v], x[v], w[o / 4], 2);
                    break;
                default:
                    sums[o][v] = vfmaq_laneq_f32(sums[o][v], x[v], w[o / 4], 3);
            }
        }
    }
#else
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        const Vector w = spread(weights[o]);
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            sums[o][v] = multiply_add(x[v], w, sums[o][v]);
        }
    }
#endif
}

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
    for (const Tap* tap = tile.taps; tap != tile.end_taps; ++tap) {
        const float* weights = tile.weights + tap->index * tile.tap_step;
        const float* from[positions];
        DISTREAL_UNROLL
        for (int v = 0; v < positions; ++v) {
            from[v] = tile.from[v] + tap->offset * tile.pixel_stride;
        }
        for (std::ptrdiff_t c = 0; c != tile.channels; c += lanes) {
            Vector x[positions];
            DISTREAL_UNROLL
            for (int v = 0; v < positions; ++v) {
                x[v] = load(from[v] + c);
                pin(x[v]);
            }
            multiply_channel(sums, x, weights);
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
    return gather_function<outputs>(positions, std::make_integer_sequence<int, positions_with(outputs)>{});
}

DISTREAL_INLINE GatherFunction gather_function(int outputs, int positions) {
    if constexpr (block_outputs > 6) {
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

// All positions of a class that a unit works on, for one block of outputs that begins with output `first`.
DISTREAL_INLINE void gather_class(const GatherTask<float>& task, const Share& share, const TapClass& of_class,
                                  GatherTile& tile, int first, int outputs) {
    const Span band = band_of(of_class.positions.size(), task.cut, share.band);
    const int most = positions_with(outputs);
    tile.taps = of_class.taps.data();
    tile.end_taps = tile.taps + of_class.taps.size();
    const GatherFunction full = gather_function(outputs, most);
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
        (group == most ? full : gather_function(outputs, group))(tile);
        left -= group;
    }
}

inline void gather(const GatherTask<float>& task, int unit) {
    const Share share = share_of(task.cut, unit);
    const OutputBlocks blocks = output_blocks(task.to_channels);
    float* const sums = task.through != nullptr ? task.through->sums : task.moments;
    float* const of_unit = sums == nullptr ? nullptr : sums + static_cast<std::ptrdiff_t>(unit) * 2 * task.to_channels;
    for (int b = 0; b < blocks.count; ++b) {
        const int first = blocks.begin(b);
        const int outputs = blocks.size(b);
        Vector first_sums[lanes > block_outputs ? lanes : 2 * block_outputs] = {};
        Vector second_sums[lanes > block_outputs ? lanes : 2 * block_outputs] = {};
        GatherTile tile;
        tile.pixel_stride = task.from.pixel_stride;
        tile.channels = static_cast<std::ptrdiff_t>(task.from_channels) * lanes;
        tile.tap_step = static_cast<std::ptrdiff_t>(task.from_channels) * padded_outputs(outputs);
        tile.weights = task.packed + packed_begin(blocks, b, task.from_channels, task.gather->taps);
        tile.bias = task.bias == nullptr ? nullptr : task.bias + first;
        tile.accumulate = task.accumulate;
        tile.moments = task.moments != nullptr;
        tile.through = task.through;
        if (task.through != nullptr) {
            tile.scale = task.through->scale + first;
            tile.shift = task.through->shift + first;
            tile.mean = task.through->mean + first;
        }
        tile.first_sums = first_sums;
        tile.second_sums = second_sums;
        for (std::size_t c = 0; c < task.gather->classes.size(); ++c) {
            gather_class(task, share, task.gather->classes[c], tile, first, outputs);
        }
        if (of_unit != nullptr) {
            store_sums(of_unit + first, first_sums, outputs);
            store_sums(of_unit + task.to_channels + first, second_sums, outputs);
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
