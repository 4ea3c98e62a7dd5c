#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Elements of a row that lie side by side, in the tensor and in the gradient.
struct Stretch {
    float* weights;
    float* momentum;
    const float* gradient;  // of the first part
    std::ptrdiff_t part_stride;
    std::ptrdiff_t count;
};

// g = gradient * scale + weight_decay * w; m = momentum * m + g; w -= lr * m, for a vector or a float.
template <class Value>
DISTREAL_INLINE void descend(const SgdTask<float>& task, Value gradient, Value& w, Value& m) {
    const Value g = gradient + task.weight_decay * w;
    m = task.momentum_factor * m + g;
    w = w - task.lr * m;
}

DISTREAL_INLINE Vector gradient_vector(const SgdTask<float>& task, const Stretch& stretch, std::ptrdiff_t i) {
    Vector sum = load(stretch.gradient + i);
    for (int part = 1; part < task.parts; ++part) {
        sum += load(stretch.gradient + part * stretch.part_stride + i);
    }
    return sum;
}

DISTREAL_INLINE float gradient_element(const SgdTask<float>& task, const Stretch& stretch, std::ptrdiff_t i) {
    float sum = stretch.gradient[i];
    for (int part = 1; part < task.parts; ++part) {
        sum += stretch.gradient[part * stretch.part_stride + i];
    }
    return sum;
}

// scale: null for 1, else `step` 1 when every element has its own and 0 when all share one.
DISTREAL_INLINE void descend_stretch(const SgdTask<float>& task, const Stretch& stretch, const float* scale, int step) {
    std::ptrdiff_t i = 0;
    for (; i + lanes <= stretch.count; i += lanes) {
        Vector gradient = gradient_vector(task, stretch, i);
        if (scale != nullptr) {
            gradient *= step != 0 ? load(scale + i) : spread(*scale);
        }
        Vector w = load(stretch.weights + i);
        Vector m = load(stretch.momentum + i);
        descend(task, gradient, w, m);
        store(stretch.weights + i, w);
        store(stretch.momentum + i, m);
    }
    for (; i < stretch.count; ++i) {
        float gradient = gradient_element(task, stretch, i);
        if (scale != nullptr) {
            gradient *= scale[i * step];
        }
        descend(task, gradient, stretch.weights[i], stretch.momentum[i]);
    }
}

// How many columns from `first` on follow one another, and can share one stretch.
DISTREAL_INLINE int columns_together(const SgdTask<float>& task, int first) {
    if (task.scale != nullptr && task.taps > 1) {
        return 1;
    }
    int count = 1;
    while (first + count < task.columns && task.column[first + count] == task.column[first] + count) {
        ++count;
    }
    return count;
}

inline void sgd(const SgdTask<float>& task, int unit) {
    const std::ptrdiff_t taps = task.taps;
    const std::ptrdiff_t elements = task.columns * taps;
    const std::ptrdiff_t row = task.row[unit] * task.row_stride;
    const float* const gradient = task.gradient + unit * elements;
    for (int first = 0; first < task.columns;) {
        const int together = columns_together(task, first);
        const std::ptrdiff_t begin = row + task.column[first] * taps;
        const Stretch stretch{task.weights + begin, task.momentum + begin, gradient + first * taps,
                              task.rows * elements, together * taps};
        descend_stretch(task, stretch, task.scale == nullptr ? nullptr : task.scale + first, task.taps == 1 ? 1 : 0);
        first += together;
    }
}

}  // namespace distreal::DISTREAL_SIMD
