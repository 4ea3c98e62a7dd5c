#pragma once
// From vectors of images to rows of channels: pixels of one image after the other, channels side by side.

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
DISTREAL_INLINE void transpose(Vector (&rows)[lanes]) {
    if constexpr (width > 0) {
        DISTREAL_UNROLL
        for (int i = 0; i < lanes; ++i) {
            if ((i & width) == 0) {
                exchange<width>(rows[i], rows[i + width], std::make_integer_sequence<int, lanes>{});
            }
        }
        transpose<width / 2>(rows);
    }
}

DISTREAL_INLINE void store_transposed(float* to, std::ptrdiff_t image_step, Vector (&rows)[lanes]) {
    transpose<lanes / 2>(rows);
    DISTREAL_UNROLL
    for (int image = 0; image < lanes; ++image) {
        store(to + image * image_step, rows[image]);
    }
}

// Writes pixels * channels floats for each image, rounded up to whole vectors: the rest of the last one is zeros.
[[gnu::noinline]] inline void transpose_pixels(float* to, std::ptrdiff_t image_step, const float* from,
                                               std::ptrdiff_t pixel_step, int pixels, int channels) {
    const std::ptrdiff_t all = static_cast<std::ptrdiff_t>(pixels) * channels;
    const std::ptrdiff_t skip = pixel_step - static_cast<std::ptrdiff_t>(channels) * lanes;
    Vector rows[lanes];
    std::ptrdiff_t done = 0;
    int channel = 0;
    for (; done + lanes <= all; done += lanes) {
        if (skip == 0 || channel + lanes <= channels) {
            DISTREAL_UNROLL
            for (int i = 0; i < lanes; ++i) {
                rows[i] = load(from + i * lanes);
            }
            from += lanes * lanes;
            channel += lanes;
            if (skip != 0 && channel == channels) {
                channel = 0;
                from += skip;
            }
        } else {
            DISTREAL_UNROLL
            for (int i = 0; i < lanes; ++i) {
                rows[i] = load(from);
                from += lanes;
                if (++channel == channels) {
                    channel = 0;
                    from += skip;
                }
            }
        }
        store_transposed(to + done, image_step, rows);
    }
    if (done < all) {
        for (int i = 0; i < lanes; ++i) {
            rows[i] = Vector{};
            if (done + i < all) {
                rows[i] = load(from);
                from += lanes;
                if (++channel == channels) {
                    channel = 0;
                    from += skip;
                }
            }
        }
        store_transposed(to + done, image_step, rows);
    }
}

}  // namespace distreal::DISTREAL_SIMD
