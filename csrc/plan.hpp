#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/geometry.hpp"

namespace distreal {

enum class Kind {
    conv2d,
    batch_norm,
    relu,
    relu6,
    hardswish,
    sigmoid,
    max_pool,
    avg_pool,
    global_avg_pool,
    add,
    multiply,
    concat,
    flatten,
    linear,
    dropout
};

// The kind of this name; throws std::invalid_argument when there is none.
Kind kind_named(std::string_view name);

struct Shape {
    int channels;
    int height;
    int width;

    Plane plane() const { return {height, width}; }
    int pixels() const { return height * width; }
    bool operator==(const Shape&) const = default;
};

// One operation of a network's plan, as network/operations.py describes it. Operation j makes value j + 1; value 0 is
// the network's input. Features [F] are maps [F, 1, 1].
struct Operation {
    Kind kind;
    std::vector<int> inputs;  // values
    Shape shape;              // of the value it makes, at full width
    Window window{{1, 1}, {1, 1}, {0, 0}, {1, 1}};
    int groups = 1;
    bool bias = false;
    double epsilon = 0.0;
    bool count_include_pad = true;
    double p = 0.0;
    bool rescales = false;

    bool has_weights() const { return kind == Kind::conv2d || kind == Kind::linear || kind == Kind::batch_norm; }
    bool is_matrix() const { return kind == Kind::conv2d || kind == Kind::linear; }
};

// Which pixels a sliding window connects; shared by all operations with the same window and planes.
struct WindowGeometry {
    Gather forward;
    Gather backward;
    TapRuns runs;
};

struct Preprocessing {
    std::vector<double> mean;  // of images in 0..1, by channel; empty: none
    std::vector<double> std;
    int crop_padding = 0;
};

// A network's plan, checked: whatever it says, executing it stays within its buffers.
class Plan {
  public:
    // `filters[value][channel]` is the number of the filter behind a channel, or -1; filters are numbered group after
    // group. Throws std::invalid_argument when anything does not fit together.
    Plan(Shape input, std::vector<Operation> operations, std::vector<std::vector<std::int32_t>> filters,
         std::vector<int> group_sizes, Preprocessing preprocessing);

    const std::vector<Operation>& operations() const { return operations_; }
    const Operation& operation(int index) const { return operations_[static_cast<std::size_t>(index)]; }
    int values() const { return static_cast<int>(filters_.size()); }
    const Shape& shape(int value) const;
    const std::vector<std::int32_t>& filters(int value) const { return filters_[static_cast<std::size_t>(value)]; }
    int filter_count() const { return static_cast<int>(group_of_filter_.size()); }
    const std::vector<int>& group_sizes() const { return group_sizes_; }
    int group_of(std::int32_t filter) const { return group_of_filter_[static_cast<std::size_t>(filter)]; }
    const Preprocessing& preprocessing() const { return preprocessing_; }
    int output() const { return values() - 1; }

    // Operations that read a value, each once, in order.
    const std::vector<int>& readers(int value) const { return readers_[static_cast<std::size_t>(value)]; }
    // Whether the value depends on something that is trained.
    bool differentiable(int value) const { return differentiable_[static_cast<std::size_t>(value)]; }
    bool depthwise(int operation) const;
    // Of convolutions, linear layers and pools.
    const WindowGeometry& geometry(int operation) const { return *geometry_[static_cast<std::size_t>(operation)]; }

  private:
    Shape input_;
    std::vector<Operation> operations_;
    std::vector<std::vector<std::int32_t>> filters_;
    std::vector<int> group_sizes_;
    Preprocessing preprocessing_;
    std::vector<int> group_of_filter_;
    std::vector<std::vector<int>> readers_;
    std::vector<bool> differentiable_;
    std::vector<std::shared_ptr<const WindowGeometry>> geometry_;
};

}  // namespace distreal
