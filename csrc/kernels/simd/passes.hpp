#pragma once
// Passes over the channels of a value, each reading and writing every element once.

#include "kernels/kernels.hpp"
#include "kernels/simd/activations.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

template <bool squares, bool some_idle>
void take_moments(const MomentsTask<float>& given, int unit) {
    const MomentsTask<float> task = given;
    with_sums(task.moments, unit, task.channels, squares,
              [&](ChannelSums& sums, int first, int count) DISTREAL_INLINE_LAMBDA {
                  for_strips(task.cut, unit, task.pixels, [&](auto strip, int block, int pixel) DISTREAL_INLINE_LAMBDA {
                      const Vector live = live_lanes(task.live, block);
                      const float* y = at(task.y, block, pixel) + first * lanes;
                      for (int c = 0; c < count; ++c) {
                          Vector sum = sums.first[c];
                          Vector products = sums.second[c];
                          DISTREAL_UNROLL
                          for (int i = 0; i < strip.pixels; ++i) {
                              Vector value = load(y + i * task.y.pixel_stride);
                              pin(value);
                              const Vector counted = some_idle ? value * live : value;
                              sum += counted;
                              if constexpr (squares) {
                                  products = multiply_add(counted, value, products);
                              }
                          }
                          sums.first[c] = sum;
                          if constexpr (squares) {
                              sums.second[c] = products;
                          }
                          y += lanes;
                      }
                  });
              });
}

template <bool squares>
void moments_of(const MomentsTask<float>& task, int unit) {
    return has_idle_lanes(task.live, share_of(task.cut, unit)) ? take_moments<squares, true>(task, unit)
                                                               : take_moments<squares, false>(task, unit);
}

inline void moments(const MomentsTask<float>& task, int unit) {
    return task.squares ? moments_of<true>(task, unit) : moments_of<false>(task, unit);
}

template <bool accumulate>
void normalise_backward_as(const NormaliseBackwardTask<float>& given, int unit) {
    const NormaliseBackwardTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const Vector live = live_lanes(task.live, block);
        const float* const gradient = at(task.gradient, block, pixel);
        const float* const y = at(task.y, block, pixel);
        float* const to = at(task.to, block, pixel);
        for_channels(task.channels, [&](auto group, int c, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                const std::ptrdiff_t there = here + i * lanes;
                Vector value = multiply_add(spread(task.a[c + i]), load(gradient + there), spread(task.c[c + i]));
                value = multiply_add(spread(task.b[c + i]), load(y + there), value) * live;
                store(to + there, accumulate ? load(to + there) + value : value);
            }
        });
    });
}

inline void normalise_backward(const NormaliseBackwardTask<float>& task, int unit) {
    return task.accumulate ? normalise_backward_as<true>(task, unit) : normalise_backward_as<false>(task, unit);
}

template <bool accumulate>
void copy_as(const CopyTask<float>& given, int unit) {
    const CopyTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const float* const from = at(task.from, block, pixel);
        float* const to = at(task.to, block, pixel);
        for_channels(task.channels, [&](auto group, int /*c*/, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                const std::ptrdiff_t there = here + i * lanes;
                const Vector value = load(from + there);
                store(to + there, accumulate ? load(to + there) + value : value);
            }
        });
    });
}

inline void copy(const CopyTask<float>& task, int unit) {
    return task.accumulate ? copy_as<true>(task, unit) : copy_as<false>(task, unit);
}

inline void add(const AddTask<float>& given, int unit) {
    const AddTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const float* const one = at(task.one, block, pixel);
        const float* const other = at(task.other, block, pixel);
        float* const out = at(task.out, block, pixel);
        for_channels(task.channels, [&](auto group, int /*c*/, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                const std::ptrdiff_t there = here + i * lanes;
                store(out + there, load(one + there) + load(other + there));
            }
        });
    });
}

template <bool accumulate>
void multiply_pixels(const MultiplyTask<float>& given, int unit) {
    const MultiplyTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const float* const one = at(task.one, block, pixel);
        const float* const other = at(task.other, block, task.other_is_single ? 0 : pixel);
        float* const to = at(task.to, block, pixel);
        for_channels(task.channels, [&](auto group, int /*c*/, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                const std::ptrdiff_t there = here + i * lanes;
                const Vector product = load(one + there) * load(other + there);
                store(to + there, accumulate ? load(to + there) + product : product);
            }
        });
    });
}

inline void multiply_and_reduce(const MultiplyTask<float>& given, int unit) {
    const MultiplyTask<float> task = given;
    const Share share = share_of(task.cut, unit);
    for (int block = share.first_block; block < share.end_block; ++block) {
        with_sums(nullptr, unit, task.channels, false,
                  [&](ChannelSums& sums, int first, int count) DISTREAL_INLINE_LAMBDA {
                      for_strips({block, block + 1, 0}, {0, task.pixels},
                                 [&](auto strip, int same_block, int pixel) DISTREAL_INLINE_LAMBDA {
                                     const float* one = at(task.one, same_block, pixel) + first * lanes;
                                     const float* other = at(task.other, same_block, pixel) + first * lanes;
                                     for (int c = 0; c < count; ++c) {
                                         Vector sum = sums.first[c];
                                         DISTREAL_UNROLL
                                         for (int i = 0; i < strip.pixels; ++i) {
                                             sum = multiply_add(load(one + i * task.one.pixel_stride),
                                                                load(other + i * task.other.pixel_stride), sum);
                                         }
                                         sums.first[c] = sum;
                                         one += lanes;
                                         other += lanes;
                                     }
                                 });
                      float* const to = at(task.to, block, 0) + first * lanes;
                      for (int c = 0; c < count; ++c) {
                          store(to + c * lanes, task.accumulate ? load(to + c * lanes) + sums.first[c] : sums.first[c]);
                      }
                  });
    }
}

inline void multiply(const MultiplyTask<float>& task, int unit) {
    if (task.reduce) {
        return multiply_and_reduce(task, unit);
    }
    return task.accumulate ? multiply_pixels<true>(task, unit) : multiply_pixels<false>(task, unit);
}

inline void flatten(const FlattenTask<float>& given, int unit) {
    const FlattenTask<float> task = given;
    const Share share = share_of(task.cut, unit);
    for (int block = share.first_block; block < share.end_block; ++block) {
        const std::int32_t* feature = task.feature;
        for (int pixel = 0; pixel < task.pixels; ++pixel) {
            const float* map_from = at(task.from, block, task.backward ? 0 : pixel);
            float* map_to = at(task.to, block, task.backward ? pixel : 0);
            for (int c = 0; c < task.channels; ++c) {
                const std::ptrdiff_t at_map = static_cast<std::ptrdiff_t>(c) * lanes;
                const std::ptrdiff_t at_feature = static_cast<std::ptrdiff_t>(*feature++) * lanes;
                const Vector value = load(map_from + (task.backward ? at_feature : at_map));
                float* const to = map_to + (task.backward ? at_map : at_feature);
                store(to, task.accumulate ? load(to) + value : value);
            }
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
