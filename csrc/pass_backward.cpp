// The backward pass, node by node from the last to the first. Gradients of weights stay where they are for the update.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pass.hpp"
#include "weight_parts.hpp"

namespace distreal {
namespace {

std::size_t at(int index) { return static_cast<std::size_t>(index); }

// The sum over units of sums[unit][which][channel], always in the same order.
template <class Real>
double sum_of_units(const Real* sums, int units, int which, int channel, int channels) {
    double sum = 0.0;
    for (int unit = 0; unit < units; ++unit) {
        sum += static_cast<double>(sums[(std::ptrdiff_t{unit} * 2 + which) * channels + channel]);
    }
    return sum;
}

}  // namespace

template <class Real>
void Pass<Real>::backward() {
    const auto& nodes = lowering_.nodes();
    find_reached();
    for (std::size_t position = nodes.size(); position-- > 0;) {
        if (!nodes[position].has_gradient) {
            continue;
        }
        for (const Gradient& gradient : nodes[position].gradients) {
            if (gradient.clear_first) {
                clear(gradient);
            }
        }
        switch (nodes[position].kind) {
            case NodeKind::convolution:
                backward_convolution(position);
                break;
            case NodeKind::depthwise:
                backward_depthwise(position);
                break;
            case NodeKind::chain:
                backward_chain(position);
                break;
            case NodeKind::pool:
                backward_pool(position);
                break;
            case NodeKind::multiply:
                backward_multiply(position);
                break;
            case NodeKind::copy:
                backward_copy(position);
                break;
            case NodeKind::flatten:
                backward_flatten(position);
                break;
            case NodeKind::dropout:
                backward_dropout(position);
                break;
        }
    }
}

// Which values the class scores depend on over this subset. All others have no gradient, which is less than a gradient
// of zero: momentum and weight decay do not touch what made them.
template <class Real>
void Pass<Real>::find_reached() {
    std::vector<bool>& reached = scratch_.reached;
    reached.assign(at(plan_.values()), false);
    reached[at(plan_.output())] = true;
    for (int index = static_cast<int>(plan_.operations().size()); index-- > 0;) {
        if (reached[at(index) + 1] && passes_on(index)) {
            for (const int input : plan_.operation(index).inputs) {
                reached[at(input)] = true;
            }
        }
    }
}

// A grouped convolution reads nothing when each of its groups has lost either all that it reads or all that it makes.
template <class Real>
bool Pass<Real>::passes_on(int operation) const {
    const Operation& made = plan_.operation(operation);
    const int in_channels = plan_.shape(made.inputs[0]).channels;
    for (int group = 0; group < made.groups; ++group) {
        const auto [first_in, end_in] = survivors_.part(made.inputs[0], in_channels, group, made.groups);
        const auto [first_out, end_out] = survivors_.part(operation + 1, made.shape.channels, group, made.groups);
        if (first_in < end_in && first_out < end_out) {
            return true;
        }
    }
    return false;
}

// Only a part of a storage is about to be written: the rest of it starts from zeros.
template <class Real>
void Pass<Real>::clear(const Gradient& gradient) {
    const int root = lowering_.place(gradient.value).root;
    const int number = program_.gradient_buffer(lowering_.gradient_root(root));
    const std::size_t elements =
        at(program_.blocks()) * at(plan_.shape(root).pixels()) * at(survivors_.count(root)) * at(kernels_.lanes);
    std::memset(buffer(number), 0, elements * sizeof(Real));
}

template <class Real>
void Pass<Real>::hand_on(const Gradient& gradient, View<const Real> from, int pixels, int channels, const Cut& cut) {
    if (gradient.handing != Handing::write && gradient.handing != Handing::accumulate) {
        return;
    }
    CopyTask<Real> task{};
    task.from = from;
    task.to = this->gradient(gradient.value);
    task.accumulate = gradient.handing == Handing::accumulate;
    task.pixels = pixels;
    task.channels = channels;
    task.cut = cut;
    const double work = static_cast<double>(program_.circumstances().images) * pixels * channels;
    share(cut.units(), work, [&](int unit, int) { kernels_.copy(task, unit); });
}

// What a node read in the forward pass, made again where it was not kept.
template <class Real>
View<const Real> Pass<Real>::input_again(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    if (node.makes_again < 0) {
        return value(node.inputs[0]).as_const();
    }
    const Node& chain = lowering_.nodes()[at(node.makes_again)];
    const Shape& shape = plan_.shape(chain.out);
    const int channels = survivors_.count(chain.out);
    ActivateTask<Real> task{};
    task.y = value(chain.inputs[0]).as_const();
    task.scale = buffer(program_.node(at(node.makes_again)).parameters);
    task.shift = task.scale + channels;
    task.activation = chain.activation;
    task.out = view_of(program_.node(position).again, chain.out, 0);
    task.pixels = shape.pixels();
    task.channels = channels;
    task.cut = program_.node(position).backward_cut;
    share(task.cut.units(), values_per_channel(shape) * channels,
          [&](int unit, int) { kernels_.activate(task, unit); });
    return task.out.as_const();
}

// How the batch norm and activation behind this node's input are differentiated on the way; null: they are not.
template <class Real>
const ThroughActivation<Real>* Pass<Real>::through(std::size_t position, ThroughActivation<Real>& space) const {
    const Node& node = lowering_.nodes()[position];
    if (node.completes < 0) {
        return nullptr;
    }
    const Node& chain = lowering_.nodes()[at(node.completes)];
    const int channels = survivors_.count(chain.out);
    space.activation = chain.activation;
    space.y = value(chain.inputs[0]).as_const();
    space.scale = buffer(program_.node(at(node.completes)).parameters);
    space.shift = space.scale + channels;
    space.mean = space.shift + channels;
    space.sums = buffer(program_.node(position).sums);
    return &space;
}

template <class Real>
void Pass<Real>::backward_convolution(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    if (node.gradients[0].handing != Handing::none) {
        for (int group = 0; group < plan_.operation(node.operation).groups; ++group) {
            convolution_to_input(position, group);
        }
    }
    if (!scratch_.reached[at(node.out)]) {
        return;
    }
    const View<const Real> input = input_again(position);
    Real* result = buffer(program_.node(position).result);
    for (int group = 0; group < plan_.operation(node.operation).groups; ++group) {
        result += differentiate_weights(position, group, input, result);
    }
    differentiate_bias(position);
}

template <class Real>
void Pass<Real>::convolution_to_input(std::size_t position, int group) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Operation& operation = plan_.operation(node.operation);
    const int in_part = plan_.shape(node.inputs[0]).channels / operation.groups;
    const int out_part = operation.shape.channels / operation.groups;
    Pack<Real> pack = pack_for(node, group, true);
    if (pack.to_channels == 0) {
        return;
    }
    pack.packed = buffer(buffers.backward_packed);
    run_pack(pack);
    ThroughActivation<Real> space;
    GatherTask<Real> task{};
    task.gather = &plan_.geometry(node.operation).backward;
    task.from = gradient(node.out, group * out_part).as_const();
    task.to = gradient(node.inputs[0], group * in_part);
    task.from_channels = pack.from_channels;
    task.to_channels = pack.to_channels;
    task.packed = pack.packed;
    task.accumulate = node.gradients[0].handing == Handing::accumulate;
    task.cut = buffers.backward_cut;
    task.live = live();
    task.through = through(position, space);
    const double work = values_per_channel(operation.shape) * pack.to_channels * pack.from_channels;
    share(task.cut.units(), work, [&](int unit, int) { kernels_.gather(task, unit); });
}

template <class Real>
std::ptrdiff_t Pass<Real>::differentiate_weights(std::size_t position, int group, View<const Real> input,
                                                 Real* result) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Operation& operation = plan_.operation(node.operation);
    const int in_channels = plan_.shape(node.inputs[0]).channels;
    const int out_channels = operation.shape.channels;
    const auto [first_in, end_in] = survivors_.part(node.inputs[0], in_channels, group, operation.groups);
    const auto [first_out, end_out] = survivors_.part(node.out, out_channels, group, operation.groups);
    if (first_in == end_in || first_out == end_out) {
        return 0;
    }
    WeightGradientTask<Real> task{};
    task.window = &operation.window;
    task.runs = &plan_.geometry(node.operation).runs;
    task.in = input;
    task.in.data += std::ptrdiff_t{first_in} * kernels_.lanes;
    task.gradient = gradient(node.out, group * (out_channels / operation.groups)).as_const();
    task.in_channels = end_in - first_in;
    task.out_channels = end_out - first_out;
    task.blocks = program_.blocks();
    task.parts = buffers.parts;
    task.result = buffers.parts > 1 ? buffer(buffers.result_parts) : result;
    task.cancellation = &cancellation_;
    Real* scratch = buffer(buffers.scratch);
    const double work = values_per_channel(operation.shape) * task.in_channels * task.out_channels;
    share(kernels_.weight_gradient_units(task), work, [&](int unit, int thread) {
        kernels_.weight_gradient(task, unit, scratch + at(thread) * buffers.thread_scratch);
    });
    const std::ptrdiff_t row_elements = std::ptrdiff_t{task.in_channels} * operation.window.taps();
    if (task.parts > 1) {
        add_parts(task.result, task.parts, task.out_channels, row_elements, result);
    }
    return task.out_channels * row_elements;
}

// `from`: [parts][rows][row_elements].
template <class Real>
void Pass<Real>::add_parts(const Real* from, int parts, int rows, std::ptrdiff_t row_elements, Real* to) const {
    const double work = static_cast<double>(parts) * rows * static_cast<double>(row_elements);
    share(rows, work, [&](int row, int) {
        add_parts_of_row(from + row * row_elements, parts, rows * row_elements, row_elements, to + row * row_elements);
    });
}

template <class Real>
void Pass<Real>::differentiate_bias(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    if (!plan_.operation(node.operation).bias) {
        return;
    }
    const Shape& shape = plan_.shape(node.out);
    MomentsTask<Real> task{};
    task.y = gradient(node.out).as_const();
    task.pixels = shape.pixels();
    task.channels = survivors_.count(node.out);
    task.cut = buffers.forward_cut;
    task.live = live();
    task.moments = buffer(buffers.coefficients);
    share(task.cut.units(), values_per_channel(shape) * task.channels,
          [&](int unit, int) { kernels_.moments(task, unit); });
    Real* gradients = buffer(buffers.vector_gradients);
    for (int channel = 0; channel < task.channels; ++channel) {
        gradients[channel] = static_cast<Real>(sum_of_units(task.moments, task.cut.units(), 0, channel, task.channels));
    }
}

template <class Real>
void Pass<Real>::backward_depthwise(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Operation& operation = plan_.operation(node.operation);
    const WindowGeometry& geometry = plan_.geometry(node.operation);
    const int multiplier = operation.shape.channels / plan_.shape(node.inputs[0]).channels;
    const int in_channels = survivors_.count(node.inputs[0]);
    const int out_channels = survivors_.count(node.out);
    const double work = values_per_channel(operation.shape) * out_channels;
    const Gradient& handed = node.gradients[0];
    if (handed.handing != Handing::none) {
        ThroughActivation<Real> space;
        scratch_.partner.clear();
        for (int channel = 0; channel <= in_channels; ++channel) {
            scratch_.partner.push_back(channel * multiplier);
        }
        DepthwiseTask<Real> task{};
        task.window = &operation.window;
        task.gather = &geometry.backward;
        task.from = gradient(node.out).as_const();
        task.to = gradient(node.inputs[0]);
        task.from_channels = out_channels;
        task.to_channels = in_channels;
        task.first = scratch_.partner.data();
        task.weights = buffer(buffers.packed);
        task.accumulate = handed.handing == Handing::accumulate;
        task.cut = buffers.backward_cut;
        task.live = live();
        task.through = through(position, space);
        share(task.cut.units(), work, [&](int unit, int) { kernels_.depthwise_backward(task, unit); });
    }
    if (!scratch_.reached[at(node.out)]) {
        return;
    }
    scratch_.partner.clear();
    for (int channel = 0; channel < out_channels; ++channel) {
        scratch_.partner.push_back(channel / multiplier);
    }
    DepthwiseWeightTask<Real> task{};
    task.window = &operation.window;
    task.runs = &geometry.runs;
    task.in = input_again(position);
    task.gradient = gradient(node.out).as_const();
    task.partner = scratch_.partner.data();
    task.out_channels = out_channels;
    task.blocks = program_.blocks();
    task.parts = buffers.parts;
    task.result = buffer(buffers.parts > 1 ? buffers.result_parts : buffers.result);
    share(kernels_.depthwise_weight_units(task), work, [&](int unit, int) { kernels_.depthwise_weight(task, unit); });
    if (task.parts > 1) {
        add_parts(task.result, task.parts, out_channels, operation.window.taps(), buffer(buffers.result));
    }
    differentiate_bias(position);
}

template <class Real>
void Pass<Real>::backward_chain(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Shape& shape = plan_.shape(node.out);
    const int channels = survivors_.count(node.out);
    const double work = values_per_channel(shape) * channels;
    const bool normalises = node.batch_norm >= 0;
    const Gradient& handed = node.gradients[0];
    const View<Real> out_gradient = gradient(node.out);
    Real* parameters = buffer(buffers.parameters);  // scale, shift, mean

    // Without anything behind it, the activation's derivative goes where the gradient is wanted at once.
    const bool directly =
        !normalises && !node.residual() && (handed.handing == Handing::write || handed.handing == Handing::accumulate);
    if (!node.through && (normalises || node.activation != Activation::none || directly)) {
        ActivateBackwardTask<Real> task{};
        task.gradient = out_gradient.as_const();
        if (program_.value_buffer(lowering_.place(node.inputs[0]).root) != no_buffer) {
            task.y = value(node.inputs[0]).as_const();
        }
        if (node.mask_from_out()) {
            task.out = value(node.out).as_const();
        }
        task.activation = node.activation;
        task.masked = directly ? gradient(node.inputs[0]) : out_gradient;
        task.accumulate = directly && handed.handing == Handing::accumulate;
        if (normalises) {
            task.scale = parameters;
            task.shift = parameters + channels;
            task.mean = parameters + 2 * channels;
            task.sums = buffer(buffers.sums);
        }
        task.pixels = shape.pixels();
        task.channels = channels;
        task.cut = buffers.backward_cut;
        share(task.cut.units(), work, [&](int unit, int) { kernels_.activate_backward(task, unit); });
    }
    if (node.residual()) {
        hand_on(node.gradients[1], out_gradient.as_const(), shape.pixels(), channels, buffers.backward_cut);
    }
    if (!normalises) {
        if (!directly) {
            hand_on(handed, out_gradient.as_const(), shape.pixels(), channels, buffers.backward_cut);
        }
        return;
    }

    const std::size_t summing = node.through ? at(node.completed_by) : position;
    const Real* sums = buffer(program_.node(summing).sums);
    const int units = program_.node(summing).backward_cut.units();
    const Place place = lowering_.place(node.inputs[0]);
    const double* variances = buffer<double>(program_.statistics_buffer(place.root)) + survivors_.count(place.root) +
                              survivors_.before(place.root, place.offset);
    const double count = values_per_channel(shape);
    Real* coefficients = buffer(buffers.coefficients);
    Real* gradients = buffer(buffers.vector_gradients);
    for (int channel = 0; channel < channels; ++channel) {
        const double inverse = 1.0 / std::sqrt(variances[channel] + plan_.operation(node.batch_norm).epsilon);
        const double shift_gradient = sum_of_units(sums, units, 0, channel, channels);
        const double scale_gradient = sum_of_units(sums, units, 1, channel, channels) * inverse;
        const double scale = static_cast<double>(parameters[channel]);
        const double mean = static_cast<double>(parameters[2 * channels + channel]);
        // scale * (d - sum(d) / n - x * sum(d * x) / n) with x = (y - mean) * inverse, as a * d + b * y + c.
        const double slope = -scale * inverse * scale_gradient / count;
        coefficients[channel] = static_cast<Real>(scale);
        coefficients[channels + channel] = static_cast<Real>(slope);
        coefficients[2 * channels + channel] = static_cast<Real>(-scale * shift_gradient / count - slope * mean);
        gradients[channel] = static_cast<Real>(scale_gradient);
        gradients[channels + channel] = static_cast<Real>(shift_gradient);
    }
    if (handed.handing == Handing::none) {
        return;
    }
    const NormaliseBackwardTask<Real> task{.gradient = out_gradient.as_const(),
                                           .y = value(node.inputs[0]).as_const(),
                                           .a = coefficients,
                                           .b = coefficients + channels,
                                           .c = coefficients + 2 * channels,
                                           .live = live(),
                                           .to = gradient(node.inputs[0]),
                                           .accumulate = handed.handing == Handing::accumulate,
                                           .pixels = shape.pixels(),
                                           .channels = channels,
                                           .cut = buffers.backward_cut};
    share(task.cut.units(), work, [&](int unit, int) { kernels_.normalise_backward(task, unit); });
}

template <class Real>
void Pass<Real>::backward_pool(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Operation& operation = plan_.operation(node.operation);
    const Gradient& handed = node.gradients[0];
    if (handed.handing == Handing::none) {
        return;
    }
    PoolTask<Real> task{};
    task.gather = &plan_.geometry(node.operation).forward;
    task.window = &operation.window;
    task.maximum = operation.kind == Kind::max_pool;
    task.count_include_pad = operation.count_include_pad;
    if (task.maximum) {
        task.in = value(node.inputs[0]).as_const();
    }
    task.gradient = gradient(node.out).as_const();
    task.in_gradient = gradient(node.inputs[0]);
    task.accumulate = handed.handing == Handing::accumulate;
    task.channels = survivors_.count(node.out);
    task.cut = program_.node(position).backward_cut;
    share(task.cut.units(), values_per_channel(plan_.shape(node.inputs[0])) * task.channels,
          [&](int unit, int) { kernels_.pool_backward(task, unit); });
}

template <class Real>
void Pass<Real>::backward_multiply(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Shape& shape = plan_.shape(node.out);
    for (std::size_t input = 0; input < 2; ++input) {
        const Gradient& handed = node.gradients[input];
        if (handed.handing == Handing::none) {
            continue;
        }
        const int other = node.inputs[1 - input];
        MultiplyTask<Real> task{};
        task.one = gradient(node.out).as_const();
        task.other = value(other).as_const();
        task.other_is_single = plan_.shape(other).pixels() < shape.pixels();
        task.reduce = plan_.shape(node.inputs[input]).pixels() < shape.pixels();
        task.to = gradient(node.inputs[input]);
        task.accumulate = handed.handing == Handing::accumulate;
        task.pixels = shape.pixels();
        task.channels = survivors_.count(node.out);
        task.cut = task.reduce ? Cut{program_.blocks(), 1, 1} : program_.node(position).forward_cut;
        share(task.cut.units(), values_per_channel(shape) * task.channels,
              [&](int unit, int) { kernels_.multiply(task, unit); });
    }
}

template <class Real>
void Pass<Real>::backward_copy(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    hand_on(node.gradients[0], gradient(node.out, node.out_offset).as_const(), plan_.shape(node.inputs[0]).pixels(),
            survivors_.count(node.inputs[0]), program_.node(position).backward_cut);
}

template <class Real>
void Pass<Real>::backward_flatten(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Gradient& handed = node.gradients[0];
    if (handed.handing == Handing::none) {
        return;
    }
    FlattenTask<Real> task{};
    task.from = gradient(node.out).as_const();
    task.to = gradient(node.inputs[0]);
    task.backward = true;
    task.accumulate = handed.handing == Handing::accumulate;
    task.pixels = plan_.shape(node.inputs[0]).pixels();
    task.channels = survivors_.count(node.inputs[0]);
    task.cut = program_.node(position).backward_cut;
    scratch_.feature.clear();
    for (int pixel = 0; pixel < task.pixels; ++pixel) {
        for (int channel = 0; channel < task.channels; ++channel) {
            scratch_.feature.push_back(channel * task.pixels + pixel);
        }
    }
    task.feature = scratch_.feature.data();
    share(task.cut.units(), values_per_channel(plan_.shape(node.inputs[0])) * task.channels,
          [&](int unit, int) { kernels_.flatten(task, unit); });
}

template <class Real>
void Pass<Real>::backward_dropout(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Gradient& handed = node.gradients[0];
    if (handed.handing == Handing::none) {
        return;
    }
    const Shape& shape = plan_.shape(node.out);
    const std::ptrdiff_t pixel_stride = std::ptrdiff_t{survivors_.count(node.out)} * kernels_.lanes;
    MultiplyTask<Real> task{};
    task.one = gradient(node.out).as_const();
    task.other = {buffer(program_.node(position).keep), pixel_stride * shape.pixels(), pixel_stride};
    task.to = gradient(node.inputs[0]);
    task.accumulate = handed.handing == Handing::accumulate;
    task.pixels = shape.pixels();
    task.channels = survivors_.count(node.out);
    task.cut = program_.node(position).forward_cut;
    share(task.cut.units(), values_per_channel(shape) * task.channels,
          [&](int unit, int) { kernels_.multiply(task, unit); });
}

template class Pass<float>;
template class Pass<double>;

}  // namespace distreal
