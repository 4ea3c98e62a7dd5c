#pragma once
// How units walk over pixels and channels, and how sums by channel leave the vectors.

#include <utility>

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"

// GCC unrolls loops over arrays of accumulators at -O2 only when told to, and keeps them in registers only then.
#define DISTREAL_UNROLL _Pragma("GCC unroll 16")
#define DISTREAL_INLINE_LAMBDA __attribute__((always_inline))

namespace distreal::DISTREAL_SIMD {

// What one unit works on.
struct Share {
    int first_block;
    int end_block;
    int band;
};

struct Span {
    int begin;
    int end;
};

DISTREAL_INLINE Share share_of(const Cut& cut, int unit) {
    const int first = unit / cut.bands * cut.blocks_per_unit;
    const int end = first + cut.blocks_per_unit;
    return {first, end < cut.blocks ? end : cut.blocks, unit % cut.bands};
}

DISTREAL_INLINE int part_begin(std::int64_t count, int part, int parts) {
    return static_cast<int>(count * part / parts);
}

DISTREAL_INLINE Span band_of(std::size_t count, const Cut& cut, int band) {
    const auto all = static_cast<std::int64_t>(count);
    return {part_begin(all, band, cut.bands), part_begin(all, band + 1, cut.bands)};
}

template <class Real>
DISTREAL_INLINE Real* at(const View<Real>& view, int block, int pixel) {
    return view.data + block * view.block_stride + pixel * view.pixel_stride;
}

// Ones where a lane holds an image.
DISTREAL_INLINE Vector live_lanes(const float* live, int block) {
    return live == nullptr ? spread(1.0F) : load(live + static_cast<std::ptrdiff_t>(block) * lanes);
}

inline bool has_idle_lanes(const float* live, const Share& share) {
    if (live != nullptr) {
        const std::ptrdiff_t end = static_cast<std::ptrdiff_t>(share.end_block) * lanes;
        for (std::ptrdiff_t i = static_cast<std::ptrdiff_t>(share.first_block) * lanes; i < end; ++i) {
            if (live[i] != 1.0F) {
                return true;
            }
        }
    }
    return false;
}

// Neighbouring pixels that are worked on at once, so that a channel's sums are loaded and stored once for all of them.
template <int n>
struct Strip {
    static constexpr int pixels = n;
};

template <class Body>
DISTREAL_INLINE void for_strips(const Share& share, Span pixels, Body body) {
    for (int block = share.first_block; block < share.end_block; ++block) {
        int pixel = pixels.begin;
        for (; pixel + 4 <= pixels.end; pixel += 4) {
            body(Strip<4>{}, block, pixel);
        }
        for (; pixel < pixels.end; ++pixel) {
            body(Strip<1>{}, block, pixel);
        }
    }
}

template <class Body>
DISTREAL_INLINE void for_strips(const Cut& cut, int unit, int pixels, Body body) {
    const Share share = share_of(cut, unit);
    for_strips(share, band_of(static_cast<std::size_t>(pixels), cut, share.band), body);
}

template <class Body>
DISTREAL_INLINE void for_pixels(const Cut& cut, int unit, int pixels, Body body) {
    const Share share = share_of(cut, unit);
    const Span span = band_of(static_cast<std::size_t>(pixels), cut, share.band);
    for (int block = share.first_block; block < share.end_block; ++block) {
        for (int pixel = span.begin; pixel < span.end; ++pixel) {
            body(block, pixel);
        }
    }
}

// Neighbouring channels of one pixel. Passes without sums take these, so that memory is walked in order.
template <int n>
struct Group {
    static constexpr int channels = n;
};

// `body` gets a group, the number of its first channel, and that channel's distance in elements.
template <class Body>
DISTREAL_INLINE void for_channels(int channels, Body body) {
    int c = 0;
    std::ptrdiff_t here = 0;
    for (; c + 4 <= channels; c += 4) {
        body(Group<4>{}, c, here);
        here += static_cast<std::ptrdiff_t>(4) * lanes;
    }
    for (; c < channels; ++c) {
        body(Group<1>{}, c, here);
        here += lanes;
    }
}

// The stride of a window of 3x3 with padding 1 and stride 1 or 2, which has kernels of its own; 0 for any other.
DISTREAL_INLINE int tile_stride(const Window& window) {
    const int stride = window.stride.data()[0];
    for (unsigned axis = 0; axis < 2; ++axis) {
        if (window.kernel.data()[axis] != 3 || window.padding.data()[axis] != 1 || window.dilation.data()[axis] != 1 ||
            window.stride.data()[axis] != stride || stride > 2) {
            return 0;
        }
    }
    return stride;
}

// Sums by channel, two of each, kept as vectors until a unit ends. Channels are unbounded and the stack is not, so
// units that need sums take this many channels at a time.
inline constexpr int channels_of_sums = 64;

struct ChannelSums {
    Vector first[channels_of_sums];
    Vector second[channels_of_sums];
};

inline void clear(ChannelSums& sums, int channels) {
    // Up to whole vectors of results, which is what store_sums reads.
    for (int c = 0; c < (channels + lanes - 1) / lanes * lanes; ++c) {
        sums.first[c] = Vector{};
        sums.second[c] = Vector{};
    }
}

template <int width, int... lane>
DISTREAL_INLINE Vector fold(Vector a, Vector b, std::integer_sequence<int, lane...> /*all*/) {
    return __builtin_shufflevector(a, b, ((lane & width) == 0 ? lane : lanes + (lane ^ width))...) +
           __builtin_shufflevector(a, b, ((lane & width) == 0 ? lane ^ width : lanes + lane)...);
}

// Lane i of the result is the sum of the lanes of values[i], when `width` is `lanes`.
template <int width>
DISTREAL_INLINE Vector sums_of_lanes(const Vector* values) {
    if constexpr (width == 1) {
        return *values;
    } else {
        return fold<width / 2>(sums_of_lanes<width / 2>(values), sums_of_lanes<width / 2>(values + width / 2),
                               std::make_integer_sequence<int, lanes>{});
    }
}

inline void store_sums(float* to, const Vector* sums, int channels) {
    int c = 0;
    for (; c + lanes <= channels; c += lanes) {
        store(to + c, sums_of_lanes<lanes>(sums + c));
    }
    if (c < channels) {
        const Vector last = sums_of_lanes<lanes>(sums + c);
        for (int lane = 0; c + lane < channels; ++lane) {
            to[c + lane] = last[lane];
        }
    }
}

// Takes the channels in groups that ChannelSums has room for; `body` gets the sums, the first channel and the number of
// channels. to: [units][2][channels].
template <class Body>
DISTREAL_INLINE void with_sums(float* to, int unit, int channels, bool squares, Body body) {
    ChannelSums sums;
    float* const of_unit = to == nullptr ? nullptr : to + static_cast<std::ptrdiff_t>(unit) * 2 * channels;
    for (int first = 0; first < channels; first += channels_of_sums) {
        const int count = channels - first < channels_of_sums ? channels - first : channels_of_sums;
        clear(sums, count);
        body(sums, first, count);
        if (of_unit != nullptr) {
            store_sums(of_unit + first, sums.first, count);
            if (squares) {
                store_sums(of_unit + channels + first, sums.second, count);
            }
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
