#pragma once
// From vectors of images to rows of channels: each image by itself, its pixels one after the other, channels side by
// side.

#include <cstddef>
#include <utility>

#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Of two rows of a matrix that are `width` apart, exchanges what lies off the diagonal of blocks of that width.
template <int width, int... lane>
DISTREAL_INLINE void exchange(Vector& a, Vector& b, std::integer_sequence<int, lane...> /*all*/) {
    const Vector upper = __builtin_shufflevector(a, b, ((lane & width) == 0 ? lane : lanes + (lane ^ width))...);
    b = __builtin_shufflevector(a, b, ((lane & width) == 0 ? (lane | width) : lanes + lane)...);
    a = upper;
}

template <int width>
DISTREAL_INLINE void exchange_all(Vector (&rows)[lanes]) {
    if constexpr (width > 0) {
        DISTREAL_UNROLL
        for (int i = 0; i < lanes; ++i) {
            if ((i & width) == 0) {
                exchange<width>(rows[i], rows[i + width], std::make_integer_sequence<int, lanes>{});
            }
        }
        exchange_all<width / 2>(rows);
    }
}

// Writes the vectors at from[0..lanes), one float of each after the other, for every image.
DISTREAL_INLINE void transpose(float* to, std::ptrdiff_t image_step, const float* const (&from)[lanes]) {
    Vector rows[lanes];
    DISTREAL_UNROLL
    for (int i = 0; i < lanes; ++i) {
        rows[i] = load(from[i]);
    }
    exchange_all<lanes / 2>(rows);
    DISTREAL_UNROLL
    for (int image = 0; image < lanes; ++image) {
        store(to + image * image_step, rows[image]);
    }
}

// Stands for what does not exist.
alignas(64) inline constexpr float zeros[lanes] = {};

// Turns `pixels` pixels of `channels` channels around. Whole vectors are written: what does not exist is zeros.
[[gnu::noinline]] inline void transpose_pixels(float* to, std::ptrdiff_t image_step, const float* from,
                                               std::ptrdiff_t pixel_step, int pixels, int channels) {
    const std::ptrdiff_t all = static_cast<std::ptrdiff_t>(pixels) * channels;
    const std::ptrdiff_t skip = pixel_step - static_cast<std::ptrdiff_t>(channels) * lanes;
    std::ptrdiff_t done = 0;
    int channel = 0;
    while (done < all) {
        if (done + lanes <= all && (skip == 0 || channel + lanes < channels)) {
            const float* side_by_side[lanes];
            DISTREAL_UNROLL
            for (int i = 0; i < lanes; ++i) {
                side_by_side[i] = from + i * lanes;
            }
            transpose(to + done, image_step, side_by_side);
            from += lanes * lanes;
            channel += lanes;
        } else {
            const float* scattered[lanes];
            for (int i = 0; i < lanes; ++i) {
                if (done + i >= all) {
                    scattered[i] = zeros;
                    continue;
                }
                scattered[i] = from;
                from += lanes;
                if (++channel == channels) {
                    channel = 0;
                    from += skip;
                }
            }
            transpose(to + done, image_step, scattered);
        }
        done += lanes;
    }
}

// The same for pixels of several rows, one under the other, whose channels come side by side: [pixel][row][channel].
// Pixels outside of begin..end-1 do not exist, nor do rows that are null; rows[r] is the pixel at `begin`.
[[gnu::noinline]] inline void transpose_columns(float* to, std::ptrdiff_t image_step, const float* const* rows,
                                                int count, std::ptrdiff_t pixel_step, int pixels, int begin, int end,
                                                int channels) {
    const float* from[lanes];
    int filled = 0;
    for (int pixel = 0; pixel < pixels; ++pixel) {
        const bool exists = pixel >= begin && pixel < end;
        for (int r = 0; r < count; ++r) {
            const float* next = exists && rows[r] != nullptr ? rows[r] + (pixel - begin) * pixel_step : zeros;
            const int step = next == zeros ? 0 : lanes;
            for (int c = 0; c < channels; ++c, next += step) {
                from[filled++] = next;
                if (filled == lanes) {
                    transpose(to, image_step, from);
                    to += lanes;
                    filled = 0;
                }
            }
        }
    }
    if (filled > 0) {
        for (; filled < lanes; ++filled) {
            from[filled] = zeros;
        }
        transpose(to, image_step, from);
    }
}

}  // namespace distreal::DISTREAL_SIMD
