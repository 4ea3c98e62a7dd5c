#pragma once
// Small random networks with every kind of operation, as plans for the executor.

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "plan.hpp"
#include "random.hpp"

namespace distreal::stepped {

using held::Random;

class RandomNetwork {
  public:
    explicit RandomNetwork(Random& random) : random_(random) {
        shapes_.push_back({random.pick({1, 3}), random.between(7, 11), random.between(7, 11)});
        filters_.push_back(std::vector<std::int32_t>(static_cast<std::size_t>(shapes_[0].channels), -1));
    }

    std::shared_ptr<const Plan> make(int blocks) {
        int value = activated(normalised(convolution(0, random_.between(5, 12), square(3, 1, 1), 1, false)));
        for (int block = 0; block < blocks; ++block) {
            value = one_block(value);
        }
        value = random_.chance(0.5) ? like(reading(Kind::global_avg_pool, {value}), pooled(value))
                                    : flattened(shrunk(value));
        linear(value, 5);
        return std::make_shared<const Plan>(shapes_[0], operations_, filters_, group_sizes_,
                                            Preprocessing{numbers(0.3, 0.6), numbers(0.2, 0.4), random_.between(0, 2)});
    }

  private:
    static Operation reading(Kind kind, std::vector<int> values) {
        return {.kind = kind, .inputs = std::move(values), .shape = {}};
    }

    static Window square(int kernel, int stride, int padding, int dilation = 1) {
        return {{kernel, kernel}, {stride, stride}, {padding, padding}, {dilation, dilation}};
    }

    std::vector<double> numbers(double low, double high) {
        std::vector<double> drawn(static_cast<std::size_t>(shapes_[0].channels));
        for (double& number : drawn) {
            number = low + (high - low) * random_.unit();
        }
        return drawn;
    }

    const Shape& shape(int value) const { return shapes_[static_cast<std::size_t>(value)]; }
    const std::vector<std::int32_t>& filters(int value) const { return filters_[static_cast<std::size_t>(value)]; }
    Shape pooled(int value) const { return {shape(value).channels, 1, 1}; }

    Shape slid(int value, int channels, const Window& window) const {
        const auto along = [&](std::size_t axis, int side) {
            return (side + 2 * window.padding[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1) /
                       window.stride[axis] +
                   1;
        };
        return {channels, along(0, shape(value).height), along(1, shape(value).width)};
    }

    int add(Operation operation, const Shape& made, std::vector<std::int32_t> filters) {
        operation.shape = made;
        operations_.push_back(std::move(operation));
        shapes_.push_back(made);
        filters_.push_back(std::move(filters));
        return static_cast<int>(shapes_.size()) - 1;
    }

    // An operation whose channels are those of its first input.
    int like(Operation operation, const Shape& made) {
        const std::vector<std::int32_t> same = filters(operation.inputs[0]);
        return add(std::move(operation), made, same);
    }

    std::vector<std::int32_t> new_group(int channels) {
        std::vector<std::int32_t> made(static_cast<std::size_t>(channels));
        for (std::int32_t& filter : made) {
            filter = next_filter_++;
        }
        group_sizes_.push_back(channels);
        return made;
    }

    // With `filters` empty it makes filters of its own.
    int convolution(int value, int channels, const Window& window, int groups, bool rescales,
                    std::vector<std::int32_t> filters = {}) {
        Operation operation = reading(Kind::conv2d, {value});
        operation.window = window;
        operation.groups = groups;
        operation.bias = random_.chance(0.3);
        operation.rescales = rescales;
        return add(std::move(operation), slid(value, channels, window),
                   filters.empty() ? new_group(channels) : std::move(filters));
    }

    int depthwise(int value, const Window& window) {
        const int channels = shape(value).channels;
        return convolution(value, channels, window, channels, false, filters(value));
    }

    int normalised(int value) {
        Operation operation = reading(Kind::batch_norm, {value});
        operation.epsilon = 1e-3;
        return like(std::move(operation), shape(value));
    }

    int activated(int value) {
        const Kind kind = random_.pick({Kind::relu, Kind::relu, Kind::relu6, Kind::hardswish, Kind::sigmoid});
        return like(reading(kind, {value}), shape(value));
    }

    int pool(int value) {
        Operation operation = reading(random_.pick({Kind::max_pool, Kind::avg_pool}), {value});
        operation.window = random_.chance(0.5) ? square(2, 2, 0) : square(3, random_.between(1, 2), 1);
        operation.count_include_pad = random_.chance(0.5);
        const Shape made = slid(value, shape(value).channels, operation.window);
        return like(std::move(operation), made);
    }

    int shrunk(int value) {
        while (shape(value).pixels() > 9) {
            Operation operation = reading(Kind::avg_pool, {value});
            operation.window = square(2, 2, 0);
            const Shape made = slid(value, shape(value).channels, operation.window);
            value = like(std::move(operation), made);
        }
        return value;
    }

    int flattened(int value) {
        std::vector<std::int32_t> features;
        for (const std::int32_t filter : filters(value)) {
            features.insert(features.end(), static_cast<std::size_t>(shape(value).pixels()), filter);
        }
        const int count = static_cast<int>(features.size());
        return add(reading(Kind::flatten, {value}), {count, 1, 1}, std::move(features));
    }

    void linear(int value, int classes) {
        Operation operation = reading(Kind::linear, {value});
        operation.bias = true;
        operation.rescales = random_.chance(0.5);
        add(std::move(operation), {classes, 1, 1}, std::vector<std::int32_t>(static_cast<std::size_t>(classes), -1));
    }

    int one_block(int value) {
        const Shape in = shape(value);
        const bool small = in.height < 4 || in.width < 4;
        const int channels = random_.between(4, 13);
        switch (random_.between(0, 8)) {
            case 0: {
                const int kernel = random_.pick({1, 3, 5});
                const Window window = square(kernel, random_.between(1, 2), kernel / 2);
                return activated(normalised(convolution(value, channels, window, 1, false)));
            }
            case 1:
                return activated(convolution(value, channels, square(3, 1, 2, 2), 1, random_.chance(0.5)));
            case 2: {
                const int deep = activated(normalised(depthwise(value, square(3, random_.between(1, 2), 1))));
                return normalised(convolution(deep, channels, square(1, 1, 0), 1, false));
            }
            case 3: {
                const int first = activated(normalised(convolution(value, channels, square(3, 1, 1), 1, false)));
                const int second = convolution(first, in.channels, square(3, 1, 1), 1, false, filters(value));
                return activated(like(reading(Kind::add, {normalised(second), value}), in));
            }
            case 4: {
                const int part = convolution(value, 4, square(3, 1, 1), 1, false);
                std::vector<std::int32_t> joined = filters(value);
                joined.insert(joined.end(), filters(part).begin(), filters(part).end());
                const Shape made{in.channels + 4, in.height, in.width};
                return activated(normalised(add(reading(Kind::concat, {value, part}), made, std::move(joined))));
            }
            case 5: {
                const int mean = like(reading(Kind::global_avg_pool, {value}), pooled(value));
                const int squeezed = convolution(mean, in.channels, square(1, 1, 0), 1, true, filters(value));
                const int factor = like(reading(Kind::sigmoid, {squeezed}), shape(squeezed));
                return like(reading(Kind::multiply, {value, factor}), in);
            }
            case 6:
                return small ? value : pool(value);
            case 7:
                return in.channels % 2 == 0 ? activated(convolution(value, 8, square(3, 1, 1), 2, true)) : value;
            default: {
                Operation operation = reading(Kind::dropout, {value});
                operation.p = 0.25;
                return like(std::move(operation), in);
            }
        }
    }

    Random& random_;
    std::vector<Shape> shapes_;
    std::vector<Operation> operations_;
    std::vector<std::vector<std::int32_t>> filters_;
    std::vector<int> group_sizes_;
    std::int32_t next_filter_ = 0;
};

}  // namespace distreal::stepped
