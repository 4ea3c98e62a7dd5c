// The reference of every kernel: what it computes, in the simplest loops. Boards whose instruction set has no kernels
// of its own run these.

#include "kernels/kernels.hpp"
#include "kernels/plain_convolution.hpp"
#include "kernels/plain_passes.hpp"
#include "kernels/plain_pools.hpp"

namespace distreal {

template <class Real>
const Kernels<Real>& plain_kernels() {
    static constexpr Kernels<Real> table{
        .name = "plain",
        .lanes = 1,
        .packed_size = plain::packed_size,
        .pack_units = plain::pack_units,
        .pack = plain::pack,
        .gather = plain::gather,
        .weight_gradient_units = plain::weight_gradient_units,
        .weight_gradient_scratch = plain::weight_gradient_scratch,
        .weight_gradient = plain::weight_gradient,
        .depthwise_forward = plain::depthwise_forward,
        .depthwise_backward = plain::depthwise_backward,
        .depthwise_weight_units = plain::depthwise_weight_units,
        .depthwise_weight = plain::depthwise_weight,
        .moments = plain::moments,
        .activate = plain::activate,
        .activate_backward = plain::activate_backward,
        .normalise_backward = plain::normalise_backward,
        .copy = plain::copy,
        .add = plain::add,
        .multiply = plain::multiply,
        .pool_forward = plain::pool_forward,
        .pool_backward = plain::pool_backward,
        .flatten = plain::flatten,
        .sgd = plain::sgd,
    };
    return table;
}

template const Kernels<float>& plain_kernels<float>();
template const Kernels<double>& plain_kernels<double>();

}  // namespace distreal
