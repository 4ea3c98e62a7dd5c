#pragma once

#include <cstddef>
#include <vector>

#include "kernels/kernels.hpp"
#include "lowering.hpp"
#include "survivors.hpp"

namespace distreal {

enum class Mode {
    train,    // forward, loss, backward, update
    moments,  // forward, normalised by the batch's own statistics
    predict,  // forward, normalised by running statistics
};

// What is executed, apart from which filters survive: their numbers, the batch, and how the work is cut.
struct Circumstances {
    Mode mode;
    int images;
    int threads;

    bool operator==(const Circumstances&) const = default;
};

inline constexpr int no_buffer = -1;

// The buffers of one node, as numbers; and how its work is cut.
struct NodeBuffers {
    Cut forward_cut{};
    Cut backward_cut{};
    int moments = no_buffer;     // forward: [units][2][channels]
    int packed = no_buffer;      // forward: packed weights
    int parameters = no_buffer;  // chain with batch norm: [3][channels], scale, shift and mean
    int keep = no_buffer;        // dropout: what every element is multiplied by
    int backward_packed = no_buffer;
    int result_parts = no_buffer;  // of the weight gradients of one conv-group, if more than one: [parts][...]
    int result = no_buffer;        // until the update: weight gradients, one conv-group after the other
    int vector_gradients =
        no_buffer;                   // until the update: of a bias, or [2][channels] of a batch norm's weight and bias
    int scratch = no_buffer;         // of the weight gradient, for all threads
    std::size_t thread_scratch = 0;  // elements of it for each thread
    int sums = no_buffer;            // backward: [units][2][channels]
    int coefficients = no_buffer;    // chain with batch norm, backward: [3][channels]
    int again = no_buffer;           // backward: the input, made again
    int parts = 1;                   // of the weight gradient
};

// The memory of a pass, planned: every buffer has its place in one arena, for as long as somebody needs it.
template <class Real>
class Program {
  public:
    Program(const Lowering& lowering, const Kernels<Real>& kernels, const Survivors& survivors,
            const Circumstances& circumstances);

    std::size_t bytes() const { return bytes_; }
    int blocks() const { return blocks_; }
    const Circumstances& circumstances() const { return circumstances_; }
    const NodeBuffers& node(std::size_t position) const { return nodes_[position]; }
    // Offsets in bytes into the arena.
    std::size_t offset(int buffer) const { return offsets_[static_cast<std::size_t>(buffer)]; }
    int value_buffer(int root) const { return values_[static_cast<std::size_t>(root)]; }
    int gradient_buffer(int gradient_root) const { return gradients_[static_cast<std::size_t>(gradient_root)]; }
    // The batch statistics of a storage's channels, doubles: [2][channels], mean and biased variance.
    int statistics_buffer(int root) const { return statistics_[static_cast<std::size_t>(root)]; }
    int input_moments() const { return input_moments_; }
    const Cut& input_cut() const { return input_cut_; }
    int live_buffer() const { return live_; }  // [blocks][lanes] of 1 and 0; no_buffer: all lanes hold images

  private:
    Circumstances circumstances_;
    int blocks_;
    std::size_t bytes_ = 0;
    std::vector<NodeBuffers> nodes_;
    std::vector<std::size_t> offsets_;
    std::vector<int> values_;
    std::vector<int> gradients_;
    std::vector<int> statistics_;
    int input_moments_ = no_buffer;
    int live_ = no_buffer;
    Cut input_cut_{};
};

}  // namespace distreal
