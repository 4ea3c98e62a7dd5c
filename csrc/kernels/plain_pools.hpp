#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/plain_layout.hpp"
#include "kernels/plain_passes.hpp"

namespace distreal::plain {

template <class Real>
Real divisor(const PoolTask<Real>& task, const TapClass& of_class) {
    return static_cast<Real>(task.count_include_pad ? task.window->taps() : static_cast<int>(of_class.taps.size()));
}

// Which pixel a maximum comes from: the first of equals; what is not a number is greater than all. There is at least
// one tap.
template <class Real>
int pixel_of_maximum(const PoolTask<Real>& task, const TapClass& of_class, const Position& position, int block, int c) {
    int found = position.from;
    for (const Tap& tap : of_class.taps) {
        const int pixel = position.from + tap.offset;
        const Real value = at(task.in, block, pixel)[c];
        if (value > at(task.in, block, found)[c] || std::isnan(value)) {
            found = pixel;
        }
    }
    return found;
}

template <class Real>
Real pooled(const PoolTask<Real>& task, const TapClass& of_class, const Position& position, int block, int c) {
    if (of_class.taps.empty()) {
        return task.maximum ? -std::numeric_limits<Real>::infinity() : Real(0);
    }
    if (task.maximum) {
        return at(task.in, block, pixel_of_maximum(task, of_class, position, block, c))[c];
    }
    Real sum = 0;
    for (const Tap& tap : of_class.taps) {
        sum += at(task.in, block, position.from + tap.offset)[c];
    }
    return sum / divisor(task, of_class);
}

template <class Real>
void pool_forward(const PoolTask<Real>& task, int unit) {
    const Range blocks = blocks_of(task.cut, unit);
    for (int block = blocks.first; block < blocks.end; ++block) {
        for (const TapClass& of_class : task.gather->classes) {
            const Range band = band_of(task.cut, unit, static_cast<int>(of_class.positions.size()));
            for (int i = band.first; i < band.end; ++i) {
                const Position& position = of_class.positions[static_cast<std::size_t>(i)];
                for (int c = 0; c < task.channels; ++c) {
                    at(task.out, block, position.to)[c] = pooled(task, of_class, position, block, c);
                }
            }
        }
    }
}

template <class Real>
void spread_gradient(const PoolTask<Real>& task, const TapClass& of_class, const Position& position, int block, int c) {
    const Real gradient = at(task.gradient, block, position.to)[c];
    if (task.maximum) {
        at(task.in_gradient, block, pixel_of_maximum(task, of_class, position, block, c))[c] += gradient;
        return;
    }
    for (const Tap& tap : of_class.taps) {
        at(task.in_gradient, block, position.from + tap.offset)[c] += gradient / divisor(task, of_class);
    }
}

template <class Real>
void pool_backward(const PoolTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.gather->from.pixels(), [&](int block, int pixel) {
        for (int c = 0; !task.accumulate && c < task.channels; ++c) {
            at(task.in_gradient, block, pixel)[c] = Real(0);
        }
    });
    const Range blocks = blocks_of(task.cut, unit);
    for (int block = blocks.first; block < blocks.end; ++block) {
        for (const TapClass& of_class : task.gather->classes) {
            for (const Position& position : of_class.positions) {
                for (int c = 0; !of_class.taps.empty() && c < task.channels; ++c) {
                    spread_gradient(task, of_class, position, block, c);
                }
            }
        }
    }
}

}  // namespace distreal::plain
