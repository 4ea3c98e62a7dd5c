// The forward pass, node by node.

#include <algorithm>
#include <cmath>

#include "images.hpp"
#include "pass.hpp"

namespace distreal {
namespace {

std::size_t at(int index) { return static_cast<std::size_t>(index); }

}  // namespace

template <class Real>
void Pass<Real>::forward(std::span<const float* const> draws) {
    std::size_t next_draw = 0;
    const auto& nodes = lowering_.nodes();
    for (std::size_t position = 0; position < nodes.size(); ++position) {
        switch (nodes[position].kind) {
            case NodeKind::convolution:
                forward_convolution(position);
                break;
            case NodeKind::depthwise:
                forward_depthwise(position);
                break;
            case NodeKind::chain:
                forward_chain(position);
                break;
            case NodeKind::pool:
                forward_pool(position);
                break;
            case NodeKind::multiply:
                forward_multiply(position);
                break;
            case NodeKind::copy:
                forward_copy(position);
                break;
            case NodeKind::flatten:
                forward_flatten(position);
                break;
            case NodeKind::dropout:
                forward_dropout(position, draws.empty() ? nullptr : draws[next_draw]);
                ++next_draw;
                break;
        }
    }
}

template <class Real>
void Pass<Real>::forward_convolution(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Operation& operation = plan_.operation(node.operation);
    const Shape& in = plan_.shape(node.inputs[0]);
    const Shape& out = operation.shape;
    Real* moments = buffer(buffers.moments);
    for (int group = 0; group < operation.groups; ++group) {
        Pack<Real> pack = pack_for(node, group, false);
        pack.packed = buffer(buffers.packed);
        if (pack.to_channels == 0) {
            continue;
        }
        run_pack(pack);
        // The surviving biases of the group lie one after the other.
        Real* bias = nullptr;
        if (operation.bias) {
            scratch_.row_scale.clear();
            for (const std::int32_t row : group_rows(node, group)) {
                scratch_.row_scale.push_back(tensors(node).bias[row]);
            }
            bias = scratch_.row_scale.data();
        }
        GatherTask<Real> task{};
        task.gather = &plan_.geometry(node.operation).forward;
        task.from = value(node.inputs[0], group * (in.channels / operation.groups)).as_const();
        task.to = value(node.out, group * (out.channels / operation.groups));
        task.from_channels = pack.from_channels;
        task.to_channels = pack.to_channels;
        task.packed = pack.packed;
        task.bias = bias;
        task.cut = buffers.forward_cut;
        task.moments = moments;
        task.live = live();
        const double work = values_per_channel(out) * pack.to_channels * (1.0 + pack.from_channels);
        share(task.cut.units(), work, [&](int unit, int) { kernels_.gather(task, unit); });
        if (moments != nullptr) {
            const Place place = lowering_.place(node.out);
            const int first = survivors_.before(place.root, place.offset + group * (out.channels / operation.groups));
            finish_moments(moments, task.cut.units(), place.root, first, pack.to_channels, out.pixels());
        }
    }
}

template <class Real>
void Pass<Real>::forward_depthwise(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Operation& operation = plan_.operation(node.operation);
    const int taps = operation.window.taps();
    const int multiplier = operation.shape.channels / plan_.shape(node.inputs[0]).channels;
    const auto& rows = survivors_.channels(node.out);
    const Tensors<Real>& tensors = this->tensors(node);
    Real* packed = buffer(buffers.packed);
    scratch_.partner.clear();
    scratch_.row_scale.clear();
    for (std::size_t out = 0; out < rows.size(); ++out) {
        std::copy_n(tensors.weight + std::ptrdiff_t{rows[out]} * taps, taps, packed + out * at(taps));
        scratch_.partner.push_back(static_cast<std::int32_t>(out) / multiplier);
        if (operation.bias) {
            scratch_.row_scale.push_back(tensors.bias[rows[out]]);
        }
    }
    DepthwiseTask<Real> task{};
    task.window = &operation.window;
    task.gather = &plan_.geometry(node.operation).forward;
    task.from = value(node.inputs[0]).as_const();
    task.to = value(node.out);
    task.from_channels = survivors_.count(node.inputs[0]);
    task.to_channels = survivors_.count(node.out);
    task.partner = scratch_.partner.data();
    task.weights = packed;
    task.bias = operation.bias ? scratch_.row_scale.data() : nullptr;
    task.cut = buffers.forward_cut;
    task.moments = buffer(buffers.moments);
    task.live = live();
    share(task.cut.units(), values_per_channel(operation.shape) * task.to_channels,
          [&](int unit, int) { kernels_.depthwise_forward(task, unit); });
    if (task.moments != nullptr) {
        const Place place = lowering_.place(node.out);
        finish_moments(task.moments, task.cut.units(), place.root, survivors_.before(place.root, place.offset),
                       task.to_channels, operation.shape.pixels());
    }
}

template <class Real>
void Pass<Real>::forward_chain(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Shape& shape = plan_.shape(node.out);
    const int channels = survivors_.count(node.out);
    ActivateTask<Real> task{};
    task.y = value(node.inputs[0]).as_const();
    task.activation = node.activation;
    task.out = value(node.out);
    task.pixels = shape.pixels();
    task.channels = channels;
    task.cut = buffers.forward_cut;
    View<const Real> residual;
    if (node.residual()) {
        residual = value(node.inputs[1]).as_const();
        task.residual = &residual;
    }
    if (node.batch_norm >= 0) {
        const Tensors<Real>& tensors = tensors_[at(node.batch_norm)];
        const double epsilon = plan_.operation(node.batch_norm).epsilon;
        const auto& rows = survivors_.channels(node.inputs[0]);
        const Place place = lowering_.place(node.inputs[0]);
        const double* statistics = buffer<double>(program_.statistics_buffer(place.root));
        const int all = survivors_.count(place.root);
        const int first = survivors_.before(place.root, place.offset);
        const bool running = program_.circumstances().mode == Mode::predict;
        Real* scale = buffer(buffers.parameters);
        Real* shift = scale + channels;
        Real* mean = shift + channels;
        for (int channel = 0; channel < channels; ++channel) {
            const int row = rows[at(channel)];
            const double middle = running ? tensors.running_mean[row] : statistics[first + channel];
            const double variance = running ? tensors.running_variance[row] : statistics[all + first + channel];
            const double factor = tensors.weight[row] / std::sqrt(variance + epsilon);
            scale[channel] = static_cast<Real>(factor);
            shift[channel] = static_cast<Real>(tensors.bias[row] - middle * factor);
            mean[channel] = static_cast<Real>(middle);
        }
        task.scale = scale;
        task.shift = shift;
    }
    share(task.cut.units(), values_per_channel(shape) * channels,
          [&](int unit, int) { kernels_.activate(task, unit); });
    take_moments(position, task.out.as_const(), shape.pixels(), channels);
}

template <class Real>
void Pass<Real>::forward_pool(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Operation& operation = plan_.operation(node.operation);
    PoolTask<Real> task{};
    task.gather = &plan_.geometry(node.operation).forward;
    task.window = &operation.window;
    task.maximum = operation.kind == Kind::max_pool;
    task.count_include_pad = operation.count_include_pad;
    task.in = value(node.inputs[0]).as_const();
    task.out = value(node.out);
    task.channels = survivors_.count(node.out);
    task.cut = program_.node(position).forward_cut;
    share(task.cut.units(), values_per_channel(plan_.shape(node.inputs[0])) * task.channels,
          [&](int unit, int) { kernels_.pool_forward(task, unit); });
    take_moments(position, task.out.as_const(), operation.shape.pixels(), task.channels);
}

template <class Real>
void Pass<Real>::forward_multiply(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Shape& shape = plan_.shape(node.out);
    // The factor with a single pixel, if there is one, comes second.
    const bool swapped = plan_.shape(node.inputs[0]).pixels() < shape.pixels();
    const int other = node.inputs[swapped ? 0 : 1];
    MultiplyTask<Real> task{};
    task.one = value(node.inputs[swapped ? 1 : 0]).as_const();
    task.other = value(other).as_const();
    task.other_is_single = plan_.shape(other).pixels() < shape.pixels();
    task.to = value(node.out);
    task.pixels = shape.pixels();
    task.channels = survivors_.count(node.out);
    task.cut = program_.node(position).forward_cut;
    share(task.cut.units(), values_per_channel(shape) * task.channels,
          [&](int unit, int) { kernels_.multiply(task, unit); });
    take_moments(position, task.to.as_const(), shape.pixels(), task.channels);
}

template <class Real>
void Pass<Real>::forward_copy(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Shape& shape = plan_.shape(node.inputs[0]);
    CopyTask<Real> task{};
    task.from = value(node.inputs[0]).as_const();
    task.to = value(node.out, node.out_offset);
    task.pixels = shape.pixels();
    task.channels = survivors_.count(node.inputs[0]);
    task.cut = program_.node(position).forward_cut;
    share(task.cut.units(), values_per_channel(shape) * task.channels,
          [&](int unit, int) { kernels_.copy(task, unit); });
    take_moments(position, task.to.as_const(), shape.pixels(), task.channels);
}

template <class Real>
void Pass<Real>::forward_flatten(std::size_t position) {
    const Node& node = lowering_.nodes()[position];
    const Shape& shape = plan_.shape(node.inputs[0]);
    FlattenTask<Real> task{};
    task.from = value(node.inputs[0]).as_const();
    task.to = value(node.out);
    task.pixels = shape.pixels();
    task.channels = survivors_.count(node.inputs[0]);
    task.cut = program_.node(position).forward_cut;
    // A channel survives with all its pixels.
    scratch_.feature.clear();
    for (int pixel = 0; pixel < task.pixels; ++pixel) {
        for (int channel = 0; channel < task.channels; ++channel) {
            scratch_.feature.push_back(channel * task.pixels + pixel);
        }
    }
    task.feature = scratch_.feature.data();
    share(task.cut.units(), values_per_channel(shape) * task.channels,
          [&](int unit, int) { kernels_.flatten(task, unit); });
    take_moments(position, task.to.as_const(), 1, survivors_.count(node.out));
}

template <class Real>
void Pass<Real>::forward_dropout(std::size_t position, const float* draws) {
    const Node& node = lowering_.nodes()[position];
    const NodeBuffers& buffers = program_.node(position);
    const Shape& shape = plan_.shape(node.out);
    const int channels = survivors_.count(node.out);
    const View<const Real> in = value(node.inputs[0]).as_const();
    const View<Real> out = value(node.out);
    if (Real* keep = buffer(buffers.keep)) {
        const std::ptrdiff_t pixel_stride = std::ptrdiff_t{channels} * kernels_.lanes;
        const View<Real> factors{keep, pixel_stride * shape.pixels(), pixel_stride};
        scatter_lanes<Real>({.draws = draws,
                             .count = program_.circumstances().images,
                             .channels = channels,
                             .pixels = shape.pixels(),
                             .p = plan_.operation(node.operation).p,
                             .lanes = kernels_.lanes,
                             .to = factors});
        MultiplyTask<Real> task{};
        task.one = in;
        task.other = factors.as_const();
        task.to = out;
        task.pixels = shape.pixels();
        task.channels = channels;
        task.cut = buffers.forward_cut;
        share(task.cut.units(), values_per_channel(shape) * channels,
              [&](int unit, int) { kernels_.multiply(task, unit); });
    } else {
        CopyTask<Real> task{};
        task.from = in;
        task.to = out;
        task.pixels = shape.pixels();
        task.channels = channels;
        task.cut = buffers.forward_cut;
        share(task.cut.units(), values_per_channel(shape) * channels,
              [&](int unit, int) { kernels_.copy(task, unit); });
    }
    take_moments(position, out.as_const(), shape.pixels(), channels);
}

template <class Real>
void Pass<Real>::take_moments(std::size_t position, View<const Real> made, int pixels, int channels) {
    const NodeBuffers& buffers = program_.node(position);
    if (buffers.moments == no_buffer) {
        return;
    }
    const Node& node = lowering_.nodes()[position];
    const MomentsTask<Real> task{.y = made,
                                 .pixels = pixels,
                                 .channels = channels,
                                 .cut = buffers.forward_cut,
                                 .live = live(),
                                 .squares = true,
                                 .moments = buffer(buffers.moments)};
    share(task.cut.units(), values_per_channel(plan_.shape(node.out)) * channels,
          [&](int unit, int) { kernels_.moments(task, unit); });
    const Place place = lowering_.place(node.out);
    finish_moments(task.moments, task.cut.units(), place.root,
                   survivors_.before(place.root, place.offset + node.out_offset), channels, pixels);
}

// Units are added up in their order, in double precision: the result does not depend on who computed which.
template <class Real>
void Pass<Real>::finish_moments(const Real* moments, int units, int root, int first_channel, int channels, int pixels) {
    double* means = buffer<double>(program_.statistics_buffer(root)) + first_channel;
    double* variances = means + survivors_.count(root);
    const double count = static_cast<double>(program_.circumstances().images) * pixels;
    for (int channel = 0; channel < channels; ++channel) {
        double sum = 0.0;
        double squares = 0.0;
        for (int unit = 0; unit < units; ++unit) {
            const Real* of_unit = moments + std::ptrdiff_t{unit} * 2 * channels;
            sum += static_cast<double>(of_unit[channel]);
            squares += static_cast<double>(of_unit[channels + channel]);
        }
        const double mean = sum / count;
        means[channel] = mean;
        variances[channel] = std::max(0.0, squares / count - mean * mean);
    }
}

template class Pass<float>;
template class Pass<double>;

}  // namespace distreal
