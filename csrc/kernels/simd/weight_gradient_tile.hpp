#pragma once
// The innermost loops of backward-weights, once pixels lie image by image: gradients of a few outputs times the inputs
// under the window, summed over pixels and images.

#include <cstddef>
#include <utility>

#include "kernels/simd/multiply.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/walk.hpp"

namespace distreal::DISTREAL_SIMD {

// Runs of pixels; all steps are in floats.
struct WeightGradientTile {
    const float* gradient;          // [run][pixel][output of the tile]
    const float* in[most_vectors];  // what the vectors of inputs begin with: [run][pixel]
    std::ptrdiff_t gradient_run;
    std::ptrdiff_t in_run;
    std::ptrdiff_t in_step;  // from the window of one pixel to the window of the next
    std::ptrdiff_t pixels;   // of each run
    int runs;
    float* sums;  // [output][vector of inputs], added to
};

template <int outputs, int vectors>
[[gnu::noinline]] void weight_gradient_tile(const WeightGradientTile& tile) {
    Vector sums[outputs][vectors];
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            sums[o][v] = load(tile.sums + (o * vectors + v) * lanes);
        }
    }
    const WeightGradientTile* of_run = &tile;
    for (std::ptrdiff_t run = 0; run < tile.runs; ++run) {
        // Read the tile anew for every run, or more addresses than there are registers are kept for the innermost loop.
        asm volatile("" : "+r"(of_run) : : "memory");
        const float* gradient = of_run->gradient + run * of_run->gradient_run;
        const std::ptrdiff_t in_step = of_run->in_step;
        std::ptrdiff_t at = run * of_run->in_run;
        const float* in[vectors];
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            in[v] = of_run->in[v];
        }
        const std::ptrdiff_t end = at + in_step * of_run->pixels;
        for (; at != end; at += in_step) {
            Vector x[vectors];
            DISTREAL_UNROLL
            for (int v = 0; v < vectors; ++v) {
                x[v] = load(in[v] + at);
                pin(x[v]);
            }
            add_products(sums, gradient, x);
            gradient += outputs;
        }
    }
    DISTREAL_UNROLL
    for (int o = 0; o < outputs; ++o) {
        DISTREAL_UNROLL
        for (int v = 0; v < vectors; ++v) {
            store(tile.sums + (o * vectors + v) * lanes, sums[o][v]);
        }
    }
}

using WeightGradientFunction = void (*)(const WeightGradientTile&);

template <int outputs, int vectors>
DISTREAL_INLINE constexpr WeightGradientFunction weight_gradient_function() {
    if constexpr (outputs <= most_numbers) {
        if constexpr (vectors <= vectors_with(outputs)) {
            return weight_gradient_tile<outputs, vectors>;
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

DISTREAL_INLINE WeightGradientFunction weight_gradient_function(int outputs, int vectors) {
    return weight_gradient_functions.of[(outputs - 1) * most_vectors + vectors - 1];
}

}  // namespace distreal::DISTREAL_SIMD
