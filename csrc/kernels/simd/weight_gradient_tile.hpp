#pragma once
// The innermost loops of backward-weights, once pixels lie image by image: a few numbers of every pixel times a few
// vectors of it, summed over pixels and images. One are gradients, the other inputs.

#include <cstddef>
#include <utility>

#include "kernels/simd/multiply.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Runs of pixels; all steps are in floats.
struct WeightGradientTile {
    const float* numbers;
    const float* vectors;
    std::ptrdiff_t number_step;  // from one pixel to the next
    std::ptrdiff_t vector_step;
    std::ptrdiff_t number_run;  // from one run to the next
    std::ptrdiff_t vector_run;
    std::ptrdiff_t pixels;  // of each run
    std::ptrdiff_t runs;
    float* sums;  // [number][vector][lane], added to
};

template <int numbers, int vectors>
[[gnu::noinline]] void weight_gradient_tile(const WeightGradientTile& tile) {
    Vector sums[numbers][vectors];
    DISTREAL_UNROLL
    for (int n = 0; n < numbers; ++n) {
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            sums[n][v] = load(tile.sums + (n * vectors + v) * lanes);
        }
    }
    const float* number_run = tile.numbers;
    const float* vector_run = tile.vectors;
    for (std::ptrdiff_t run = tile.runs; run > 0; --run) {
        const float* number = number_run;
        const float* vector = vector_run;
        for (std::ptrdiff_t pixel = tile.pixels; pixel > 0; --pixel) {
            Vector x[vectors];
            DISTREAL_UNROLL
            for (int v = 0; v < vectors; ++v) {
                x[v] = load(vector + v * lanes);
                pin(x[v]);
            }
            add_products(sums, number, x);
            number += tile.number_step;
            vector += tile.vector_step;
        }
        number_run += tile.number_run;
        vector_run += tile.vector_run;
    }
    DISTREAL_UNROLL
    for (int n = 0; n < numbers; ++n) {
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            store(tile.sums + (n * vectors + v) * lanes, sums[n][v]);
        }
    }
}

using WeightGradientFunction = void (*)(const WeightGradientTile&);

template <int numbers, int vectors>
DISTREAL_INLINE constexpr WeightGradientFunction weight_gradient_function() {
    if constexpr (numbers <= most_numbers) {
        if constexpr (vectors <= vectors_with(numbers)) {
            return weight_gradient_tile<numbers, vectors>;
        }
    }
    return nullptr;
}

struct WeightGradientFunctions {
    WeightGradientFunction of[most_numbers * most_vectors];
};

template <int... index>
DISTREAL_INLINE constexpr WeightGradientFunctions all_weight_gradient_functions(
    std::integer_sequence<int, index...> /*all*/) {
    return {{weight_gradient_function<index / most_vectors + 1, index % most_vectors + 1>()...}};
}

inline constexpr WeightGradientFunctions weight_gradient_functions =
    all_weight_gradient_functions(std::make_integer_sequence<int, most_numbers * most_vectors>{});

DISTREAL_INLINE WeightGradientFunction weight_gradient_function(int numbers, int vectors) {
    return weight_gradient_functions.of[(numbers - 1) * most_vectors + vectors - 1];
}

}  // namespace distreal::DISTREAL_SIMD
