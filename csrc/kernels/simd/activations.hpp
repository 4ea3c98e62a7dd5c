#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// exp to about one unit in the last place between exp(-87) and exp(88); outside, what the ends give. NaN stays NaN.
DISTREAL_INLINE Vector exponential(Vector x) {
    x = maximum(spread(-87.0F), minimum(spread(88.0F), x));
    // Adding 1.5 * 2^23 rounds to whole numbers, and leaves them in the lowest bits.
    const Vector magic = spread(12582912.0F);
    const Vector shifted = multiply_add(x, spread(1.44269504F), magic);
    const Vector n = shifted - magic;
    Vector rest = multiply_add(n, spread(-0.693359375F), x);
    rest = multiply_add(n, spread(2.12194440e-4F), rest);
    Vector sum = spread(1.9875691500e-4F);
    sum = multiply_add(sum, rest, spread(1.3981999507e-3F));
    sum = multiply_add(sum, rest, spread(8.3334519073e-3F));
    sum = multiply_add(sum, rest, spread(4.1665795894e-2F));
    sum = multiply_add(sum, rest, spread(1.6666665459e-1F));
    sum = multiply_add(sum, rest, spread(5.0000001201e-1F));
    sum = multiply_add(sum, rest * rest, rest + 1.0F);
    using Bits = std::uint32_t __attribute__((vector_size(lanes * sizeof(float))));
    const Bits power = (reinterpret_cast<Bits>(shifted) << 23) + 0x3F800000U;
    return sum * reinterpret_cast<Vector>(power);
}

DISTREAL_INLINE Vector logistic(Vector x) { return 1.0F / (1.0F + exponential(-x)); }

template <Activation activation>
DISTREAL_INLINE Vector activated(Vector x) {
    if constexpr (activation == Activation::none) {
        return x;
    } else if constexpr (activation == Activation::relu) {
        return maximum(Vector{}, x);  // in this order NaN stays NaN
    } else if constexpr (activation == Activation::relu6) {
        return minimum(spread(6.0F), maximum(Vector{}, x));
    } else if constexpr (activation == Activation::hardswish) {
        return x * activated<Activation::relu6>(x + 3.0F) * (1.0F / 6.0F);
    } else {
        return logistic(x);
    }
}

// What the derivative of an activation is computed from.
enum class Known { result, scaled_input, input };

// gradient * activation'(...), `known` being the activation's result or what went into it.
template <Activation activation, bool is_result>
DISTREAL_INLINE Vector masked_by(Vector gradient, Vector known) {
    const Vector zero{};
    if constexpr (activation == Activation::none) {
        return gradient;
    } else if constexpr (activation == Activation::relu) {
        return known <= zero ? zero : gradient;
    } else if constexpr (activation == Activation::relu6) {
        const Vector above = known <= zero ? zero : gradient;
        return known >= spread(6.0F) ? zero : above;
    } else if constexpr (activation == Activation::hardswish) {
        const Vector middle = gradient * multiply_add(known, spread(1.0F / 3.0F), spread(0.5F));
        const Vector above = known <= spread(-3.0F) ? zero : middle;
        return known >= spread(3.0F) ? gradient : above;
    } else {
        const Vector result = is_result ? known : logistic(known);
        return gradient * (result * (1.0F - result));
    }
}

template <Activation activation, bool scaled, bool with_residual>
void activate_as(const ActivateTask<float>& given, int unit) {
    const ActivateTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const float* const y = at(task.y, block, pixel);
        const float* const residual = with_residual ? at(*task.residual, block, pixel) : nullptr;
        float* const out = at(task.out, block, pixel);
        for_channels(task.channels, [&](auto group, int c, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                Vector value = load(y + here + i * lanes);
                if constexpr (scaled) {
                    value = multiply_add(value, spread(task.scale[c + i]), spread(task.shift[c + i]));
                }
                if constexpr (with_residual) {
                    value += load(residual + here + i * lanes);
                }
                store(out + here + i * lanes, activated<activation>(value));
            }
        });
    });
}

template <Activation activation>
void activate_by(const ActivateTask<float>& task, int unit) {
    if (task.scale != nullptr) {
        return task.residual != nullptr ? activate_as<activation, true, true>(task, unit)
                                        : activate_as<activation, true, false>(task, unit);
    }
    return task.residual != nullptr ? activate_as<activation, false, true>(task, unit)
                                    : activate_as<activation, false, false>(task, unit);
}

inline void activate(const ActivateTask<float>& task, int unit) {
    switch (task.activation) {
        case Activation::none:
            return activate_by<Activation::none>(task, unit);
        case Activation::relu:
            return activate_by<Activation::relu>(task, unit);
        case Activation::relu6:
            return activate_by<Activation::relu6>(task, unit);
        case Activation::hardswish:
            return activate_by<Activation::hardswish>(task, unit);
        case Activation::sigmoid:
            return activate_by<Activation::sigmoid>(task, unit);
    }
}

// The gradient at one vector, masked by what is known there.
template <Activation activation, Known from>
DISTREAL_INLINE Vector masked_at(const ActivateBackwardTask<float>& task, int c, const float* gradient,
                                 const float* known) {
    const Vector d = load(gradient);
    if constexpr (activation == Activation::none) {
        return d;
    } else if constexpr (from == Known::scaled_input) {
        const Vector input = multiply_add(load(known), spread(task.scale[c]), spread(task.shift[c]));
        return masked_by<activation, false>(d, input);
    } else {
        return masked_by<activation, from == Known::result>(d, load(known));
    }
}

template <Activation activation, Known from>
void mask(const ActivateBackwardTask<float>& given, int unit) {
    const ActivateBackwardTask<float> task = given;
    for_pixels(task.cut, unit, task.pixels, [&](int block, int pixel) DISTREAL_INLINE_LAMBDA {
        const float* const gradient = at(task.gradient, block, pixel);
        const float* const known =
            activation == Activation::none ? gradient : at(from == Known::result ? task.out : task.y, block, pixel);
        float* const masked = at(task.masked, block, pixel);
        for_channels(task.channels, [&](auto group, int c, std::ptrdiff_t here) DISTREAL_INLINE_LAMBDA {
            DISTREAL_UNROLL
            for (int i = 0; i < group.channels; ++i) {
                const std::ptrdiff_t there = here + i * lanes;
                const Vector d = masked_at<activation, from>(task, c + i, gradient + there, known + there);
                store(masked + there, task.accumulate ? load(masked + there) + d : d);
            }
        });
    });
}

template <Activation activation, Known from>
void mask_and_sum(const ActivateBackwardTask<float>& given, int unit) {
    const ActivateBackwardTask<float> task = given;
    const View<const float> source = from == Known::result ? task.out : task.y;
    with_sums(
        task.sums, unit, task.channels, true, [&](ChannelSums& sums, int first, int count) DISTREAL_INLINE_LAMBDA {
            for_strips(task.cut, unit, task.pixels, [&](auto strip, int block, int pixel) DISTREAL_INLINE_LAMBDA {
                const float* gradient = at(task.gradient, block, pixel) + first * lanes;
                const float* y = at(task.y, block, pixel) + first * lanes;
                const float* known = at(source, block, pixel) + first * lanes;
                float* masked = at(task.masked, block, pixel) + first * lanes;
                for (int c = 0; c < count; ++c) {
                    Vector d[strip.pixels];
                    const Vector mean = spread(task.mean[first + c]);
                    Vector sum = sums.first[c];
                    Vector products = sums.second[c];
                    DISTREAL_UNROLL
                    for (int i = 0; i < strip.pixels; ++i) {
                        d[i] = masked_at<activation, from>(task, first + c, gradient + i * task.gradient.pixel_stride,
                                                           known + i * source.pixel_stride);
                        sum += d[i];
                        products = multiply_add(d[i], load(y + i * task.y.pixel_stride) - mean, products);
                    }
                    DISTREAL_UNROLL
                    for (int i = 0; i < strip.pixels; ++i) {
                        store(masked + i * task.masked.pixel_stride, d[i]);
                    }
                    sums.first[c] = sum;
                    sums.second[c] = products;
                    gradient += lanes;
                    y += lanes;
                    known += lanes;
                    masked += lanes;
                }
            });
        });
}

template <Activation activation, Known from>
void activate_backward_from(const ActivateBackwardTask<float>& task, int unit) {
    return task.mean != nullptr ? mask_and_sum<activation, from>(task, unit) : mask<activation, from>(task, unit);
}

template <Activation activation>
void activate_backward_by(const ActivateBackwardTask<float>& task, int unit) {
    if constexpr (activation != Activation::hardswish && activation != Activation::none) {
        if (task.out.data != nullptr) {
            return activate_backward_from<activation, Known::result>(task, unit);
        }
    }
    return task.scale != nullptr ? activate_backward_from<activation, Known::scaled_input>(task, unit)
                                 : activate_backward_from<activation, Known::input>(task, unit);
}

inline void activate_backward(const ActivateBackwardTask<float>& task, int unit) {
    switch (task.activation) {
        case Activation::none:
            return activate_backward_from<Activation::none, Known::input>(task, unit);
        case Activation::relu:
            return activate_backward_by<Activation::relu>(task, unit);
        case Activation::relu6:
            return activate_backward_by<Activation::relu6>(task, unit);
        case Activation::hardswish:
            return activate_backward_by<Activation::hardswish>(task, unit);
        case Activation::sigmoid:
            return activate_backward_by<Activation::sigmoid>(task, unit);
    }
}

}  // namespace distreal::DISTREAL_SIMD
