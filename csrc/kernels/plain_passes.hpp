#pragma once
// Passes over the channels of values, and the optimiser's pass over weights.

#include <cstddef>

#include "kernels/plain_activation.hpp"
#include "kernels/plain_layout.hpp"

namespace distreal::plain {

// Calls pass(block, pixel) for everything a unit works on.
template <class Pass>
void for_each_pixel(const Cut& cut, int unit, int pixels, const Pass& pass) {
    const Range blocks = blocks_of(cut, unit);
    const Range band = band_of(cut, unit, pixels);
    for (int block = blocks.first; block < blocks.end; ++block) {
        for (int pixel = band.first; pixel < band.end; ++pixel) {
            pass(block, pixel);
        }
    }
}

template <class Real>
void put(Real& to, Real value, bool accumulate) {
    to = accumulate ? to + value : value;
}

template <class Real>
void moments(const MomentsTask<Real>& task, int unit) {
    Real* const sums = task.moments + static_cast<std::ptrdiff_t>(unit) * 2 * task.channels;
    for (int c = 0; c < (task.squares ? 2 : 1) * task.channels; ++c) {
        sums[c] = Real(0);
    }
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        if (!is_live(task.live, block)) {
            return;
        }
        const Real* const y = at(task.y, block, pixel);
        for (int c = 0; c < task.channels; ++c) {
            sums[c] += y[c];
        }
        for (int c = 0; task.squares && c < task.channels; ++c) {
            sums[task.channels + c] += y[c] * y[c];
        }
    });
}

template <class Real>
void activate(const ActivateTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const y = at(task.y, block, pixel);
        const Real* const residual = task.residual == nullptr ? nullptr : at(*task.residual, block, pixel);
        Real* const out = at(task.out, block, pixel);
        for (int c = 0; c < task.channels; ++c) {
            Real pre = task.scale == nullptr ? y[c] : task.scale[c] * y[c] + task.shift[c];
            if (residual != nullptr) {
                pre += residual[c];
            }
            out[c] = activated(task.activation, pre);
        }
    });
}

template <class Real>
void activate_backward(const ActivateBackwardTask<Real>& task, int unit) {
    Real* const sums = cleared_sums(task.mean == nullptr ? nullptr : task.sums, unit, task.channels);
    const bool from_out = task.out.data != nullptr && derivative_follows_from_result(task.activation);
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const gradient = at(task.gradient, block, pixel);
        Real* const masked = at(task.masked, block, pixel);
        for (int c = 0; c < task.channels; ++c) {
            Real d = gradient[c];
            if (from_out) {
                d *= derivative_from_result(task.activation, at(task.out, block, pixel)[c]);
            } else if (task.activation != Activation::none) {
                const Real y = at(task.y, block, pixel)[c];
                d *= derivative(task.activation, task.scale == nullptr ? y : task.scale[c] * y + task.shift[c]);
            }
            if (sums != nullptr) {
                sums[c] += d;
                sums[task.channels + c] += d * (at(task.y, block, pixel)[c] - task.mean[c]);
            }
            put(masked[c], d, task.accumulate);
        }
    });
}

template <class Real>
void normalise_backward(const NormaliseBackwardTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const gradient = at(task.gradient, block, pixel);
        const Real* const y = at(task.y, block, pixel);
        Real* const to = at(task.to, block, pixel);
        const bool lives = is_live(task.live, block);
        for (int c = 0; c < task.channels; ++c) {
            put(to[c], lives ? task.a[c] * gradient[c] + task.b[c] * y[c] + task.c[c] : Real(0), task.accumulate);
        }
    });
}

template <class Real>
void copy(const CopyTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const from = at(task.from, block, pixel);
        Real* const to = at(task.to, block, pixel);
        for (int c = 0; c < task.channels; ++c) {
            put(to[c], from[c], task.accumulate);
        }
    });
}

template <class Real>
void add(const AddTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const one = at(task.one, block, pixel);
        const Real* const other = at(task.other, block, pixel);
        Real* const out = at(task.out, block, pixel);
        for (int c = 0; c < task.channels; ++c) {
            out[c] = one[c] + other[c];
        }
    });
}

template <class Real>
void multiply(const MultiplyTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        const Real* const one = at(task.one, block, pixel);
        const Real* const other = at(task.other, block, task.other_is_single ? 0 : pixel);
        Real* const to = at(task.to, block, task.reduce ? 0 : pixel);
        const bool adds = task.accumulate || (task.reduce && pixel > 0);
        for (int c = 0; c < task.channels; ++c) {
            put(to[c], one[c] * other[c], adds);
        }
    });
}

template <class Real>
void flatten(const FlattenTask<Real>& task, int unit) {
    for_each_pixel(task.cut, unit, task.pixels, [&](int block, int pixel) {
        for (int c = 0; c < task.channels; ++c) {
            const int feature = task.feature[pixel * task.channels + c];
            if (task.backward) {
                put(at(task.to, block, pixel)[c], at(task.from, block, 0)[feature], task.accumulate);
            } else {
                put(at(task.to, block, 0)[feature], at(task.from, block, pixel)[c], task.accumulate);
            }
        }
    });
}

template <class Real>
void sgd(const SgdTask<Real>& task, int unit) {
    const std::ptrdiff_t row = task.row[unit] * task.row_stride;
    const std::ptrdiff_t row_size = static_cast<std::ptrdiff_t>(task.columns) * task.taps;
    for (int i = 0; i < task.columns; ++i) {
        for (int tap = 0; tap < task.taps; ++tap) {
            Real gradient = task.gradient[unit * row_size + static_cast<std::ptrdiff_t>(i) * task.taps + tap];
            if (task.scale != nullptr) {
                gradient *= task.scale[i];
            }
            const std::ptrdiff_t element = row + static_cast<std::ptrdiff_t>(task.column[i]) * task.taps + tap;
            Real& weight = task.weights[element];
            Real& momentum = task.momentum[element];
            momentum = task.momentum_factor * momentum + (gradient + task.weight_decay * weight);
            weight -= task.lr * momentum;
        }
    }
}

}  // namespace distreal::plain
