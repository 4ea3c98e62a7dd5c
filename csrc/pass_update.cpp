// The update of weights and momentum from the gradients that the backward pass has left behind. A tensor belongs to one
// operation, so that the order does not matter.

#include "pass.hpp"

namespace distreal {
namespace {

std::size_t at(int index) { return static_cast<std::size_t>(index); }

// SGD as torch.optim.SGD does it, for one element.
template <class Real>
void train_element(Real& weight, Real& momentum, Real gradient, const Optimiser& optimiser) {
    const Real decayed = gradient + static_cast<Real>(optimiser.weight_decay) * weight;
    momentum = static_cast<Real>(optimiser.momentum) * momentum + decayed;
    weight -= static_cast<Real>(optimiser.lr) * momentum;
}

}  // namespace

template <class Real>
void Pass<Real>::update(const Optimiser& optimiser) {
    const auto& nodes = lowering_.nodes();
    for (std::size_t position = 0; position < nodes.size(); ++position) {
        const Node& node = nodes[position];
        if (!node.has_gradient || !scratch_.reached[at(node.out)]) {
            continue;
        }
        if (node.kind == NodeKind::convolution) {
            update_convolution(position, optimiser);
        } else if (node.kind == NodeKind::depthwise) {
            update_depthwise(position, optimiser);
        } else if (node.batch_norm >= 0) {
            update_batch_norm(position, optimiser);
        }
    }
}

template <class Real>
void Pass<Real>::update_convolution(std::size_t position, const Optimiser& optimiser) {
    const Node& node = lowering_.nodes()[position];
    const Real* result = buffer(program_.node(position).result);
    for (int group = 0; group < plan_.operation(node.operation).groups; ++group) {
        const Pack<Real> matrix = pack_for(node, group, true);  // not to be packed: it says which weights survive
        const SgdTask<Real> task{.weights = tensors(node).weight,
                                 .momentum = tensors(node).weight_momentum,
                                 .row_stride = matrix.from_stride,
                                 .row = matrix.from_index,
                                 .column = matrix.to_index,
                                 .rows = matrix.from_channels,
                                 .columns = matrix.to_channels,
                                 .taps = matrix.taps,
                                 .gradient = result,
                                 .scale = matrix.to_scale,
                                 .lr = static_cast<Real>(optimiser.lr),
                                 .momentum_factor = static_cast<Real>(optimiser.momentum),
                                 .weight_decay = static_cast<Real>(optimiser.weight_decay)};
        const std::ptrdiff_t elements = std::ptrdiff_t{task.rows} * task.columns * task.taps;
        share_all(task.rows, static_cast<double>(elements), [&](int unit, int) { kernels_.sgd(task, unit); });
        result += elements;
    }
    update_bias(position, optimiser);
}

template <class Real>
void Pass<Real>::update_depthwise(std::size_t position, const Optimiser& optimiser) {
    const Node& node = lowering_.nodes()[position];
    const auto& rows = survivors_.channels(node.out);
    const std::int32_t only_column = 0;
    const int taps = plan_.operation(node.operation).window.taps();
    const SgdTask<Real> task{.weights = tensors(node).weight,
                             .momentum = tensors(node).weight_momentum,
                             .row_stride = taps,
                             .row = rows.data(),
                             .column = &only_column,
                             .rows = static_cast<int>(rows.size()),
                             .columns = 1,
                             .taps = taps,
                             .gradient = buffer(program_.node(position).result),
                             .scale = nullptr,
                             .lr = static_cast<Real>(optimiser.lr),
                             .momentum_factor = static_cast<Real>(optimiser.momentum),
                             .weight_decay = static_cast<Real>(optimiser.weight_decay)};
    share_all(task.rows, static_cast<double>(task.rows) * task.taps, [&](int unit, int) { kernels_.sgd(task, unit); });
    update_bias(position, optimiser);
}

template <class Real>
void Pass<Real>::update_bias(std::size_t position, const Optimiser& optimiser) {
    const Node& node = lowering_.nodes()[position];
    if (!plan_.operation(node.operation).bias) {
        return;
    }
    const Real* gradient = buffer(program_.node(position).vector_gradients);
    for (const std::int32_t row : survivors_.channels(node.out)) {
        train_element(tensors(node).bias[row], tensors(node).bias_momentum[row], *gradient++, optimiser);
    }
}

template <class Real>
void Pass<Real>::update_batch_norm(std::size_t position, const Optimiser& optimiser) {
    const Node& node = lowering_.nodes()[position];
    const Tensors<Real>& tensors = tensors_[at(node.batch_norm)];
    const auto& rows = survivors_.channels(node.inputs[0]);
    const Real* of_weight = buffer(program_.node(position).vector_gradients);
    const Real* of_bias = of_weight + rows.size();
    for (const std::int32_t row : rows) {
        train_element(tensors.weight[row], tensors.weight_momentum[row], *of_weight++, optimiser);
        train_element(tensors.bias[row], tensors.bias_momentum[row], *of_bias++, optimiser);
    }
}

template class Pass<float>;
template class Pass<double>;

}  // namespace distreal
