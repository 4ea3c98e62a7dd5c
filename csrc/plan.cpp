#include "plan.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace distreal {
namespace {

constexpr auto kind_names = std::to_array<std::pair<std::string_view, Kind>>({
    {"conv2d", Kind::conv2d},
    {"batch_norm", Kind::batch_norm},
    {"relu", Kind::relu},
    {"relu6", Kind::relu6},
    {"hardswish", Kind::hardswish},
    {"sigmoid", Kind::sigmoid},
    {"max_pool", Kind::max_pool},
    {"avg_pool", Kind::avg_pool},
    {"global_avg_pool", Kind::global_avg_pool},
    {"add", Kind::add},
    {"multiply", Kind::multiply},
    {"concat", Kind::concat},
    {"flatten", Kind::flatten},
    {"linear", Kind::linear},
    {"dropout", Kind::dropout},
});

// The same bounds as network/plan.py's: products of them fit into the types used here.
constexpr std::int64_t maximum_elements = std::int64_t{1} << 28;
constexpr int maximum_extent = 1 << 16;

[[noreturn]] void refuse(int index, const std::string& complaint) {
    throw std::invalid_argument("operation " + std::to_string(index) + ": " + complaint);
}

void require(bool holds, int index, const char* complaint) {
    if (!holds) {
        refuse(index, complaint);
    }
}

bool sound(const Shape& shape) {
    const auto within = [](int side) { return 1 <= side && side <= maximum_elements; };
    return within(shape.channels) && within(shape.height) && within(shape.width) &&
           std::int64_t{shape.channels} * shape.height <= maximum_elements &&
           std::int64_t{shape.channels} * shape.height * shape.width <= maximum_elements;
}

int windows_along(const Window& window, std::size_t axis, int side) {
    const int reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
    const int room = side + 2 * window.padding[axis] - reach;
    return room < 0 ? 0 : room / window.stride[axis] + 1;
}

bool sound(const Window& window) {
    for (std::size_t axis = 0; axis < 2; ++axis) {
        const auto within = [](int lowest, int number) { return lowest <= number && number <= maximum_extent; };
        if (!within(1, window.kernel[axis]) || !within(1, window.stride[axis]) || !within(0, window.padding[axis]) ||
            !within(1, window.dilation[axis])) {
            return false;
        }
    }
    return true;
}

// What the operation makes of its inputs' shapes.
Shape made_shape(const Operation& operation, int index, const std::vector<Shape>& in) {
    const auto inputs = [&](std::size_t count) { require(in.size() == count, index, "has a wrong number of inputs"); };
    const Shape& first = in.front();
    switch (operation.kind) {
        case Kind::conv2d:
        case Kind::max_pool:
        case Kind::avg_pool: {
            inputs(1);
            const int channels = operation.kind == Kind::conv2d ? operation.shape.channels : first.channels;
            require(operation.groups >= 1 && first.channels % operation.groups == 0 && channels % operation.groups == 0,
                    index, "has groups that do not divide its channels");
            return {channels, windows_along(operation.window, 0, first.height),
                    windows_along(operation.window, 1, first.width)};
        }
        case Kind::global_avg_pool:
            inputs(1);
            return {first.channels, 1, 1};
        case Kind::add:
            inputs(2);
            require(in[0] == in[1], index, "adds different shapes");
            return first;
        case Kind::multiply: {
            inputs(2);
            const Shape& large = in[0].pixels() >= in[1].pixels() ? in[0] : in[1];
            const Shape& small = in[0].pixels() >= in[1].pixels() ? in[1] : in[0];
            require(in[0] == in[1] || (small.channels == large.channels && small.pixels() == 1), index,
                    "multiplies shapes that do not fit");
            return large;
        }
        case Kind::concat: {
            Shape joined{0, first.height, first.width};
            std::int64_t channels = 0;
            for (const Shape& part : in) {
                require(part.plane().height == first.height && part.width == first.width, index,
                        "joins different planes");
                channels += part.channels;
            }
            require(channels <= maximum_elements, index, "joins too many channels");
            joined.channels = static_cast<int>(channels);
            return joined;
        }
        case Kind::flatten:
            inputs(1);
            return {first.channels * first.pixels(), 1, 1};
        case Kind::linear:
            inputs(1);
            require(first.pixels() == 1, index, "reads maps instead of features");
            return {operation.shape.channels, 1, 1};
        case Kind::batch_norm:
            require(operation.epsilon > 0.0 && std::isfinite(operation.epsilon), index, "has an epsilon of 0 or less");
            inputs(1);
            return first;
        case Kind::dropout:
            require(operation.p >= 0.0 && operation.p < 1.0, index, "has a probability outside [0, 1)");
            inputs(1);
            return first;
        default:
            inputs(1);
            return first;
    }
}

// The filters behind the channels that the operation makes of its inputs; empty where it makes filters of its own.
std::vector<std::int32_t> made_filters(const Operation& operation,
                                       const std::vector<const std::vector<std::int32_t>*>& in, const Shape& first,
                                       bool depthwise) {
    const auto repeated = [&](std::size_t times) {
        std::vector<std::int32_t> filters;
        filters.reserve(in[0]->size() * times);
        for (const std::int32_t filter : *in[0]) {
            filters.insert(filters.end(), times, filter);
        }
        return filters;
    };
    switch (operation.kind) {
        case Kind::linear:
            return {};
        case Kind::conv2d:
            return depthwise ? repeated(static_cast<std::size_t>(operation.shape.channels / first.channels))
                             : std::vector<std::int32_t>{};
        case Kind::flatten:
            return repeated(static_cast<std::size_t>(first.pixels()));
        case Kind::concat: {
            std::vector<std::int32_t> filters;
            for (const auto* part : in) {
                filters.insert(filters.end(), part->begin(), part->end());
            }
            return filters;
        }
        default:
            return *in[0];
    }
}

}  // namespace

Kind kind_named(std::string_view name) {
    const auto found = std::ranges::find(kind_names, name, &std::pair<std::string_view, Kind>::first);
    if (found == kind_names.end()) {
        throw std::invalid_argument("there is no kind of operation named " + std::string(name));
    }
    return found->second;
}

Plan::Plan(Shape input, std::vector<Operation> operations, std::vector<std::vector<std::int32_t>> filters,
           std::vector<int> group_sizes, Preprocessing preprocessing)
    : input_(input),
      operations_(std::move(operations)),
      filters_(std::move(filters)),
      group_sizes_(std::move(group_sizes)),
      preprocessing_(std::move(preprocessing)) {
    if (!sound(input_) || operations_.empty() || filters_.size() != operations_.size() + 1) {
        throw std::invalid_argument("a plan needs a shape, operations, and the filters of every value");
    }
    for (const auto* numbers : {&preprocessing_.mean, &preprocessing_.std}) {
        if (!numbers->empty() && numbers->size() != static_cast<std::size_t>(input_.channels)) {
            throw std::invalid_argument("the normalisation has not one number for each channel");
        }
    }
    if (preprocessing_.crop_padding < 0 || preprocessing_.crop_padding > maximum_extent) {
        throw std::invalid_argument("the padding of crops is out of range");
    }
    for (std::size_t group = 0; group < group_sizes_.size(); ++group) {
        if (group_sizes_[group] < 1 || group_sizes_[group] > maximum_elements) {
            throw std::invalid_argument("a filter group is empty or too large");
        }
        group_of_filter_.insert(group_of_filter_.end(), static_cast<std::size_t>(group_sizes_[group]),
                                static_cast<int>(group));
    }

    readers_.resize(filters_.size());
    differentiable_.assign(filters_.size(), false);
    geometry_.resize(operations_.size());
    using Key = std::tuple<std::array<int, 2>, std::array<int, 2>, std::array<int, 2>, std::array<int, 2>, int, int>;
    std::map<Key, std::shared_ptr<const WindowGeometry>> known;
    for (int index = 0; index < static_cast<int>(operations_.size()); ++index) {
        Operation& operation = operations_[static_cast<std::size_t>(index)];
        require(!operation.inputs.empty(), index, "reads nothing");
        std::vector<Shape> in;
        bool differentiable = operation.has_weights();
        for (const int value : operation.inputs) {
            require(0 <= value && value <= index, index, "reads a value that is not made before it");
            in.push_back(shape(value));
            differentiable = differentiable || differentiable_[static_cast<std::size_t>(value)];
            auto& readers = readers_[static_cast<std::size_t>(value)];
            if (readers.empty() || readers.back() != index) {
                readers.push_back(index);
            }
        }
        if (operation.kind == Kind::global_avg_pool) {
            operation.window = {{in[0].height, in[0].width}, {1, 1}, {0, 0}, {1, 1}};
        }
        require(sound(operation.window) && sound(operation.shape), index, "has a window or shape out of range");
        require(made_shape(operation, index, in) == operation.shape, index, "does not make the shape it says");
        differentiable_[static_cast<std::size_t>(index) + 1] = differentiable;

        switch (operation.kind) {
            case Kind::conv2d:
            case Kind::linear:
            case Kind::max_pool:
            case Kind::avg_pool:
            case Kind::global_avg_pool: {
                const Window& window = operation.window;
                const Key key{window.kernel, window.stride, window.padding, window.dilation, in[0].height, in[0].width};
                auto& geometry = known[key];
                if (!geometry) {
                    const Plane from = in[0].plane();
                    const Plane to = operation.shape.plane();
                    geometry = std::make_shared<const WindowGeometry>(WindowGeometry{forward_gather(window, from, to),
                                                                                     backward_gather(window, from, to),
                                                                                     tap_runs(window, from, to)});
                }
                geometry_[static_cast<std::size_t>(index)] = geometry;
                break;
            }
            default:
                break;
        }
    }
    for (int value = 0; value < values(); ++value) {
        const auto& of_value = this->filters(value);
        if (of_value.size() != static_cast<std::size_t>(shape(value).channels) ||
            std::ranges::any_of(of_value,
                                [this](std::int32_t filter) { return filter < -1 || filter >= filter_count(); })) {
            throw std::invalid_argument("value " + std::to_string(value) + " has filters that do not exist");
        }
    }
    // What survives of a value must follow from what survives of those it is made of.
    for (int index = 0; index < static_cast<int>(operations_.size()); ++index) {
        const Operation& operation = this->operation(index);
        std::vector<const std::vector<std::int32_t>*> in;
        for (const int value : operation.inputs) {
            in.push_back(&this->filters(value));
        }
        const auto expected = made_filters(operation, in, shape(operation.inputs[0]), depthwise(index));
        require(expected.empty() || expected == this->filters(index + 1), index, "makes channels of other filters");
        if (operation.kind == Kind::add || operation.kind == Kind::multiply) {
            require(*in[0] == *in[1], index, "joins channels of different filters");
        }
    }
}

const Shape& Plan::shape(int value) const {
    return value == 0 ? input_ : operations_[static_cast<std::size_t>(value) - 1].shape;
}

bool Plan::depthwise(int operation) const {
    const Operation& one = this->operation(operation);
    const int inputs = shape(one.inputs[0]).channels;
    return one.kind == Kind::conv2d && one.groups == inputs && inputs > 1;
}

}  // namespace distreal
