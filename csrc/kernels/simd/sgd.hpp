#pragma once

#if defined(__AVX512VL__)
#include <immintrin.h>
#endif

#include "kernels/kernels.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Elements of a row that lie side by side, in the tensor and in the gradient.
struct Stretch {
    float* weights;
    float* momentum;
    const float* gradient;
    const float* scale;  // null for 1
    int scale_step;      // 1 where every element has its own scale, 0 where all share one
    std::ptrdiff_t count;
};

// Whole vectors, single floats, and with AVX-512 what is left of a vector: memory beyond it is not touched.
struct WholeVector {
    DISTREAL_INLINE Vector read(const float* from) const { return load(from); }
    DISTREAL_INLINE void write(float* to, Vector value) const { store(to, value); }
    DISTREAL_INLINE Vector same(float value) const { return spread(value); }
};

struct SingleFloat {
    DISTREAL_INLINE float read(const float* from) const { return *from; }
    DISTREAL_INLINE void write(float* to, float value) const { *to = value; }
    DISTREAL_INLINE float same(float value) const { return value; }
};

#if defined(__AVX512VL__)
struct VectorRest {
    std::ptrdiff_t count;  // 1 to lanes - 1

#if defined(DISTREAL_SIMD_256)
    DISTREAL_INLINE __mmask8 mask() const { return static_cast<__mmask8>((1U << count) - 1); }
    DISTREAL_INLINE Vector read(const float* from) const { return _mm256_maskz_loadu_ps(mask(), from); }
    DISTREAL_INLINE void write(float* to, Vector value) const { _mm256_mask_storeu_ps(to, mask(), value); }
#else
    DISTREAL_INLINE __mmask16 mask() const { return static_cast<__mmask16>((1U << count) - 1); }
    DISTREAL_INLINE Vector read(const float* from) const { return _mm512_maskz_loadu_ps(mask(), from); }
    DISTREAL_INLINE void write(float* to, Vector value) const { _mm512_mask_storeu_ps(to, mask(), value); }
#endif
    DISTREAL_INLINE Vector same(float value) const { return spread(value); }
};
#endif

// g = gradient * scale + weight_decay * w; m = momentum * m + g; w -= lr * m, from element i on.
template <class Memory>
DISTREAL_INLINE void descend(const SgdTask<float>& task, const Stretch& stretch, std::ptrdiff_t i, Memory memory) {
    auto g = memory.read(stretch.gradient + i);
    if (stretch.scale != nullptr) {
        g *= stretch.scale_step != 0 ? memory.read(stretch.scale + i) : memory.same(*stretch.scale);
    }
    const auto w = memory.read(stretch.weights + i);
    g += task.weight_decay * w;
    const auto m = task.momentum_factor * memory.read(stretch.momentum + i) + g;
    memory.write(stretch.momentum + i, m);
    memory.write(stretch.weights + i, w - task.lr * m);
}

DISTREAL_INLINE void descend_stretch(const SgdTask<float>& task, const Stretch& stretch) {
    std::ptrdiff_t i = 0;
    for (; i + lanes <= stretch.count; i += lanes) {
        descend(task, stretch, i, WholeVector{});
    }
#if defined(__AVX512VL__)
    if (i < stretch.count) {
        descend(task, stretch, i, VectorRest{stretch.count - i});
    }
#else
    for (; i < stretch.count; ++i) {
        descend(task, stretch, i, SingleFloat{});
    }
#endif
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

inline void sgd(const SgdTask<float>& given, int unit) {
    const SgdTask<float> task = given;
    const std::ptrdiff_t taps = task.taps;
    const std::ptrdiff_t elements = task.columns * taps;
    const std::ptrdiff_t row = task.row[unit] * task.row_stride;
    const float* const gradient = task.gradient + unit * elements;
    for (int first = 0; first < task.columns;) {
        const int together = columns_together(task, first);
        const std::ptrdiff_t begin = row + task.column[first] * taps;
        descend_stretch(
            task, {task.weights + begin, task.momentum + begin, gradient + first * taps,
                   task.scale == nullptr ? nullptr : task.scale + first, task.taps == 1 ? 1 : 0, together * taps});
        first += together;
    }
}

}  // namespace distreal::DISTREAL_SIMD
