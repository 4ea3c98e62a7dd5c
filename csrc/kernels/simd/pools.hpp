#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// A value that wins stays the winner among equals, and NaN wins over everything, as in PyTorch.
DISTREAL_INLINE Integers beats(Vector value, Vector best) { return (value > best) | (value != value); }

DISTREAL_INLINE float average_factor(const PoolTask<float>& task, const TapClass& of_class) {
    const int taps = task.count_include_pad ? task.gather->taps : static_cast<int>(of_class.taps.size());
    return 1.0F / static_cast<float>(taps);
}

// Where the taps of a class lie, in elements from an anchor.
struct TapOffsets {
    const Tap* taps;
    std::ptrdiff_t pixel_stride;

    DISTREAL_INLINE std::ptrdiff_t operator[](int t) const { return taps[t].offset * pixel_stride; }
};

// Takes n taps from number t on into the results of all channels, which lie in the cache meanwhile.
template <bool maximum, int n>
DISTREAL_INLINE void pool_taps(const float* from, float* to, TapOffsets offsets, int t, int taps, int channels,
                               Vector factor) {
    const float* tap[n];
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        tap[i] = from + offsets[t + i];
    }
    const bool is_first = t == 0;
    const Vector scale = t + n == taps ? factor : spread(1.0F);
    for (int c = 0; c < channels; ++c) {
        const std::ptrdiff_t here = static_cast<std::ptrdiff_t>(c) * lanes;
        Vector value[n];
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            value[i] = load(tap[i] + here);
        }
        Vector result = value[0];
        if (!is_first) {
            const Vector before = load(to + here);
            result = maximum ? (beats(result, before) ? result : before) : before + result;
        }
        DISTREAL_UNROLL
        for (int i = 1; i < n; ++i) {
            result = maximum ? (beats(value[i], result) ? value[i] : result) : result + value[i];
        }
        store(to + here, maximum ? result : result * scale);
    }
}

template <bool maximum>
DISTREAL_INLINE void pool_window(const float* from, float* to, TapOffsets offsets, int taps, int channels,
                                 Vector factor) {
    int t = 0;
    for (; t + 4 <= taps; t += 4) {
        pool_taps<maximum, 4>(from, to, offsets, t, taps, channels, factor);
    }
    for (; t + 2 <= taps; t += 2) {
        pool_taps<maximum, 2>(from, to, offsets, t, taps, channels, factor);
    }
    if (t < taps) {
        pool_taps<maximum, 1>(from, to, offsets, t, taps, channels, factor);
    }
}

template <bool maximum>
void pool_positions(const PoolTask<float>& task, const TapClass& of_class, int block, Span span) {
    const TapOffsets offsets{of_class.taps.data(), task.in.pixel_stride};
    const int taps = static_cast<int>(of_class.taps.size());
    const Vector factor = spread(average_factor(task, of_class));
    const Position* const positions = of_class.positions.data();
    for (int p = span.begin; p < span.end; ++p) {
        pool_window<maximum>(at(task.in, block, positions[p].from), at(task.out, block, positions[p].to), offsets, taps,
                             task.channels, factor);
    }
}

DISTREAL_INLINE void clear_pixel(const View<float>& view, int block, int pixel, int channels) {
    float* const to = at(view, block, pixel);
    for (int c = 0; c < channels; ++c) {
        store(to + c * lanes, Vector{});
    }
}

template <bool maximum>
void pool_block(const PoolTask<float>& task, const TapClass& of_class, int block, Span span) {
    if (of_class.taps.size() == 0) {
        for (int p = span.begin; p < span.end; ++p) {
            clear_pixel(task.out, block, of_class.positions.data()[p].to, task.channels);
        }
    } else {
        pool_positions<maximum>(task, of_class, block, span);
    }
}

inline void pool_forward(const PoolTask<float>& task, int unit) {
    const Share share = share_of(task.cut, unit);
    for (int block = share.first_block; block < share.end_block; ++block) {
        for (std::size_t i = 0; i < task.gather->classes.size(); ++i) {
            const TapClass& of_class = task.gather->classes.data()[i];
            const Span span = band_of(of_class.positions.size(), task.cut, share.band);
            if (task.maximum) {
                pool_block<true>(task, of_class, block, span);
            } else {
                pool_block<false>(task, of_class, block, span);
            }
        }
    }
}

// Whether no pixel is read by two windows.
DISTREAL_INLINE bool windows_are_apart(const PoolTask<float>& task) {
    const int outputs[2] = {task.gather->to.height, task.gather->to.width};
    for (unsigned axis = 0; axis < 2; ++axis) {
        const int extent = task.window->dilation.data()[axis] * (task.window->kernel.data()[axis] - 1) + 1;
        if (outputs[axis] > 1 && task.window->stride.data()[axis] < extent) {
            return false;
        }
    }
    return true;
}

DISTREAL_INLINE std::int64_t pairs_of(const Gather& gather) {
    std::int64_t pairs = 0;
    for (std::size_t i = 0; i < gather.classes.size(); ++i) {
        const TapClass& of_class = gather.classes.data()[i];
        pairs += static_cast<std::int64_t>(of_class.taps.size() * of_class.positions.size());
    }
    return pairs;
}

template <bool add>
DISTREAL_INLINE void put(float* to, Vector value) {
    store(to, add ? load(to) + value : value);
}

// Hands a window's gradient to the first of its largest pixels. With `count` taps known, all are held in registers.
template <bool add, int count>
DISTREAL_INLINE void give_to_maximum(const float* in, float* to, Vector gradient, TapOffsets in_at, TapOffsets to_at,
                                     int taps) {
    const int all = count > 0 ? count : taps;
    Vector best = load(in);
    Integers winner{};
    DISTREAL_UNROLL
    for (int t = 1; t < all; ++t) {
        const Vector next = load(in + in_at[t]);
        const Integers wins = beats(next, best);
        best = wins ? next : best;
        winner = wins ? Integers{} + t : winner;
    }
    DISTREAL_UNROLL
    for (int t = 0; t < all; ++t) {
        put<add>(to + to_at[t], winner == t ? gradient : Vector{});
    }
}

template <bool add, int n>
DISTREAL_INLINE void give_to_taps(const float* gradient, float* to, TapOffsets to_at, int t, int channels,
                                  Vector factor) {
    float* tap[n];
    DISTREAL_UNROLL
    for (int i = 0; i < n; ++i) {
        tap[i] = to + to_at[t + i];
    }
    for (int c = 0; c < channels; ++c) {
        const std::ptrdiff_t here = static_cast<std::ptrdiff_t>(c) * lanes;
        const Vector share = load(gradient + here) * factor;
        DISTREAL_UNROLL
        for (int i = 0; i < n; ++i) {
            put<add>(tap[i] + here, share);
        }
    }
}

// Spreads a window's gradient over its pixels.
template <bool add>
DISTREAL_INLINE void give_to_all(const float* gradient, float* to, TapOffsets to_at, int taps, int channels,
                                 Vector factor) {
    int t = 0;
    for (; t + 4 <= taps; t += 4) {
        give_to_taps<add, 4>(gradient, to, to_at, t, channels, factor);
    }
    for (; t < taps; ++t) {
        give_to_taps<add, 1>(gradient, to, to_at, t, channels, factor);
    }
}

template <bool maximum, bool add, int count>
void pool_backward_positions(const PoolTask<float>& task, const TapClass& of_class, int block) {
    const TapOffsets in_at{of_class.taps.data(), task.in.pixel_stride};
    const TapOffsets to_at{of_class.taps.data(), task.in_gradient.pixel_stride};
    const int taps = count > 0 ? count : static_cast<int>(of_class.taps.size());
    const Vector factor = spread(average_factor(task, of_class));
    for (std::size_t p = 0; p < of_class.positions.size(); ++p) {
        const Position position = of_class.positions.data()[p];
        const float* const in = maximum ? at(task.in, block, position.from) : nullptr;
        const float* const gradient = at(task.gradient, block, position.to);
        float* const to = at(task.in_gradient, block, position.from);
        if constexpr (maximum) {
            for (int c = 0; c < task.channels; ++c) {
                const std::ptrdiff_t here = static_cast<std::ptrdiff_t>(c) * lanes;
                give_to_maximum<add, count>(in + here, to + here, load(gradient + here), in_at, to_at, taps);
            }
        } else {
            give_to_all<add>(gradient, to, to_at, taps, task.channels, factor);
        }
    }
}

template <bool maximum, bool add>
void pool_backward_block(const PoolTask<float>& task, int block) {
    for (std::size_t i = 0; i < task.gather->classes.size(); ++i) {
        const TapClass& of_class = task.gather->classes.data()[i];
        if (of_class.taps.size() == 4) {
            pool_backward_positions<maximum, add, 4>(task, of_class, block);
        } else if (of_class.taps.size() > 0) {
            pool_backward_positions<maximum, add, 0>(task, of_class, block);
        }
    }
}

inline void pool_backward(const PoolTask<float>& task, int unit) {
    const Share share = share_of(task.cut, unit);
    const int pixels = task.gather->from.pixels();
    const bool apart = windows_are_apart(task);
    // Windows that leave no pixel out and share none write every gradient exactly once.
    const bool written_once = apart && pairs_of(*task.gather) == pixels;
    const bool add = task.accumulate || !apart;
    for (int block = share.first_block; block < share.end_block; ++block) {
        if (!task.accumulate && !written_once) {
            for (int pixel = 0; pixel < pixels; ++pixel) {
                clear_pixel(task.in_gradient, block, pixel, task.channels);
            }
        }
        if (task.maximum) {
            add ? pool_backward_block<true, true>(task, block) : pool_backward_block<true, false>(task, block);
        } else {
            add ? pool_backward_block<false, true>(task, block) : pool_backward_block<false, false>(task, block);
        }
    }
}

}  // namespace distreal::DISTREAL_SIMD
