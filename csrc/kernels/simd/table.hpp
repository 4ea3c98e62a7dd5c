#pragma once

#include "kernels/kernels.hpp"
#include "kernels/simd/depthwise.hpp"
#include "kernels/simd/gather.hpp"
#include "kernels/simd/passes.hpp"
#include "kernels/simd/pools.hpp"
#include "kernels/simd/sgd.hpp"
#include "kernels/simd/vector.hpp"
#include "kernels/simd/weight_gradient.hpp"

#define DISTREAL_STRING(name) #name
#define DISTREAL_NAME(name) DISTREAL_STRING(name)

namespace distreal::DISTREAL_SIMD {

inline constexpr Kernels<float> table{
    .name = DISTREAL_NAME(DISTREAL_SIMD),
    .lanes = lanes,
    .packed_size = packed_size,
    .pack_units = pack_units,
    .pack = pack,
    .gather = gather,
    .weight_gradient_units = weight_gradient_units,
    .weight_gradient_scratch = weight_gradient_scratch,
    .weight_gradient = weight_gradient,
    .depthwise_forward = depthwise_forward,
    .depthwise_backward = depthwise_backward,
    .depthwise_weight_units = depthwise_weight_units,
    .depthwise_weight = depthwise_weight,
    .moments = moments,
    .activate = activate,
    .activate_backward = activate_backward,
    .normalise_backward = normalise_backward,
    .copy = copy,
    .add = add,
    .multiply = multiply,
    .pool_forward = pool_forward,
    .pool_backward = pool_backward,
    .flatten = flatten,
    .sgd = sgd,
};

}  // namespace distreal::DISTREAL_SIMD
