#include "pass.hpp"

#include <algorithm>

#include "images.hpp"

namespace distreal {

template <class Real>
Pass<Real>::Pass(const Lowering& lowering, const Kernels<Real>& kernels, const Program<Real>& program,
                 const Survivors& survivors, std::span<const Tensors<Real>> tensors, Arena& arena, ThreadPool& pool,
                 PassScratch<Real>& scratch, const Cancellation& cancellation)
    : lowering_(lowering),
      plan_(lowering.plan()),
      kernels_(kernels),
      program_(program),
      survivors_(survivors),
      tensors_(tensors),
      arena_(arena),
      pool_(pool),
      scratch_(scratch),
      cancellation_(cancellation) {
    if (Real* live = buffer(program_.live_buffer())) {
        const int lanes = program_.blocks() * kernels_.lanes;
        for (int lane = 0; lane < lanes; ++lane) {
            live[lane] = lane < program_.circumstances().images ? Real{1} : Real{0};
        }
    }
}

template <class Real>
View<Real> Pass<Real>::view_of(int number, int root, int first_channel) const {
    const std::ptrdiff_t pixel_stride = pixel_stride_for(survivors_.count(root), kernels_.lanes, sizeof(Real));
    return {buffer(number) + std::ptrdiff_t{first_channel} * kernels_.lanes, pixel_stride * plan_.shape(root).pixels(),
            pixel_stride};
}

// `from_channel` counts at full width, as places do.
template <class Real>
View<Real> Pass<Real>::value(int value, int from_channel) const {
    const Place place = lowering_.place(value);
    return view_of(program_.value_buffer(place.root), place.root,
                   survivors_.before(place.root, place.offset + from_channel));
}

template <class Real>
View<Real> Pass<Real>::gradient(int value, int from_channel) const {
    const Place place = lowering_.place(value);
    return view_of(program_.gradient_buffer(lowering_.gradient_root(place.root)), place.root,
                   survivors_.before(place.root, place.offset + from_channel));
}

template <class Real>
const Real* Pass<Real>::live() const {
    return buffer(program_.live_buffer());
}

template <class Real>
double Pass<Real>::values_per_channel(const Shape& shape) const {
    return static_cast<double>(program_.circumstances().images) * shape.pixels();
}

// The surviving outputs of a conv-group, by their rows in the weight tensor.
template <class Real>
std::span<const std::int32_t> Pass<Real>::group_rows(const Node& node, int group) {
    const auto& channels = survivors_.channels(node.out);
    const int full = plan_.shape(node.out).channels;
    const auto [first, last] = survivors_.part(node.out, full, group, plan_.operation(node.operation).groups);
    return std::span(channels).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
}

// The surviving inputs of a conv-group, by their columns: counted within the group.
template <class Real>
std::span<const std::int32_t> Pass<Real>::group_columns(const Node& node, int group) {
    const auto& channels = survivors_.channels(node.inputs[0]);
    const int groups = plan_.operation(node.operation).groups;
    const int full = plan_.shape(node.inputs[0]).channels;
    const auto [first, last] = survivors_.part(node.inputs[0], full, group, groups);
    scratch_.columns.assign(channels.begin() + first, channels.begin() + last);
    for (std::int32_t& column : scratch_.columns) {
        column -= group * (full / groups);
    }
    return scratch_.columns;
}

// What inverted dropout multiplies the inputs by; null where it is not wanted.
template <class Real>
const Real* Pass<Real>::column_scales(const Node& node, int group) {
    const Operation& operation = plan_.operation(node.operation);
    if (!operation.rescales || program_.circumstances().mode != Mode::train) {
        return nullptr;
    }
    const int input = node.inputs[0];
    const auto [first, last] = survivors_.part(input, plan_.shape(input).channels, group, operation.groups);
    scratch_.column_scale.clear();
    for (int position = first; position < last; ++position) {
        const int channel = survivors_.channels(input)[static_cast<std::size_t>(position)];
        const std::int32_t filter = plan_.filters(input)[static_cast<std::size_t>(channel)];
        const double share =
            filter < 0 ? 1.0 : survivors_.inverse_shares()[static_cast<std::size_t>(plan_.group_of(filter))];
        scratch_.column_scale.push_back(static_cast<Real>(share));
    }
    return scratch_.column_scale.data();
}

template <class Real>
Pack<Real> Pass<Real>::pack_for(const Node& node, int group, bool backward) {
    const Operation& operation = plan_.operation(node.operation);
    const auto rows = group_rows(node, group);
    const auto columns = group_columns(node, group);
    const Real* scale = column_scales(node, group);
    const int taps = operation.window.taps();
    const std::ptrdiff_t row_stride = std::ptrdiff_t{plan_.shape(node.inputs[0]).channels / operation.groups} * taps;
    Pack<Real> pack{};
    pack.weights = tensors(node).weight;
    pack.taps = taps;
    pack.to_index = backward ? columns.data() : rows.data();
    pack.to_channels = static_cast<int>(backward ? columns.size() : rows.size());
    pack.to_stride = backward ? taps : row_stride;
    pack.to_scale = backward ? scale : nullptr;
    pack.from_index = backward ? rows.data() : columns.data();
    pack.from_channels = static_cast<int>(backward ? rows.size() : columns.size());
    pack.from_stride = backward ? row_stride : taps;
    pack.from_scale = backward ? nullptr : scale;
    return pack;
}

template <class Real>
void Pass<Real>::run_pack(const Pack<Real>& pack) {
    const double elements = static_cast<double>(pack.to_channels) * pack.from_channels * pack.taps;
    share(kernels_.pack_units(pack), elements, [&](int unit, int) { kernels_.pack(pack, unit); });
}

template <class Real>
void Pass<Real>::load(const Images& images) {
    const Shape& shape = plan_.shape(0);
    const auto prepare = [&]<class Pixel>(const Pixel* pixels) {
        ImageTask<Real, Pixel> task{};
        task.images = pixels;
        task.count = images.count;
        task.channels = shape.channels;
        task.height = shape.height;
        task.width = shape.width;
        task.corners = images.corners;
        task.flips = images.flips;
        task.margin = plan_.preprocessing().crop_padding;
        task.mean = plan_.preprocessing().mean.empty() ? nullptr : plan_.preprocessing().mean.data();
        task.std = plan_.preprocessing().std.empty() ? nullptr : plan_.preprocessing().std.data();
        task.lanes = kernels_.lanes;
        task.to = value(0);
        task.cut = program_.input_cut();
        share(task.cut.units(), values_per_channel(shape) * shape.channels,
              [&](int unit, int) { prepare_images(task, unit); });
    };
    switch (images.type) {
        case PixelType::uint8:
            prepare(static_cast<const std::uint8_t*>(images.data));
            break;
        case PixelType::float32:
            prepare(static_cast<const float*>(images.data));
            break;
        case PixelType::float64:
            prepare(static_cast<const double*>(images.data));
            break;
    }
    if (Real* moments = buffer(program_.input_moments())) {
        const MomentsTask<Real> task{.y = value(0).as_const(),
                                     .pixels = shape.pixels(),
                                     .channels = shape.channels,
                                     .cut = program_.input_cut(),
                                     .live = live(),
                                     .squares = true,
                                     .moments = moments};
        share(task.cut.units(), values_per_channel(shape) * shape.channels,
              [&](int unit, int) { kernels_.moments(task, unit); });
        const Place place = lowering_.place(0);
        finish_moments(moments, task.cut.units(), place.root, survivors_.before(place.root, place.offset),
                       shape.channels, shape.pixels());
    }
}

template <class Real>
double Pass<Real>::loss(const std::int64_t* labels) {
    const int output = plan_.output();
    if (lowering_.output_partial()) {
        clear({.value = output, .handing = Handing::write, .clear_first = true});
    }
    return cross_entropy<Real>({.scores = value(output).as_const(),
                                .gradient = gradient(output),
                                .labels = labels,
                                .images = program_.circumstances().images,
                                .classes = plan_.shape(output).channels,
                                .lanes = kernels_.lanes});
}

template <class Real>
void Pass<Real>::read_scores(Real* scores) const {
    const int output = plan_.output();
    gather_scores<Real>(value(output).as_const(), program_.circumstances().images, plan_.shape(output).channels,
                        kernels_.lanes, scores);
}

template <class Real>
void Pass<Real>::read_statistics(int value, double* mean, double* variance) const {
    const Place place = lowering_.place(value);
    const double* statistics = buffer<double>(program_.statistics_buffer(place.root));
    const int all = survivors_.count(place.root);
    const int first = survivors_.before(place.root, place.offset);
    for (int channel = 0; channel < survivors_.count(value); ++channel) {
        mean[channel] = statistics[first + channel];
        variance[channel] = statistics[all + first + channel];
    }
}

template class Pass<float>;
template class Pass<double>;

}  // namespace distreal
