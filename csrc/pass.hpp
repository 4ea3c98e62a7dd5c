#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "arena.hpp"
#include "cancellation.hpp"
#include "kernels/kernels.hpp"
#include "lowering.hpp"
#include "program.hpp"
#include "survivors.hpp"
#include "threads.hpp"

namespace distreal {

// The tensors of one operation, where their owner keeps them; null where it has none.
template <class Real>
struct Tensors {
    Real* weight = nullptr;
    Real* bias = nullptr;
    const Real* running_mean = nullptr;
    const Real* running_variance = nullptr;
    Real* weight_momentum = nullptr;
    Real* bias_momentum = nullptr;
};

struct Optimiser {
    double lr;
    double momentum;
    double weight_decay;
};

enum class PixelType { uint8, float32, float64 };

// C-contiguous images [N, C, H, W], and how they are augmented.
struct Images {
    const void* data;
    PixelType type;
    int count;
    const std::int32_t* corners;  // [N][2], top and left; null: not cropped
    const std::uint8_t* flips;    // [N]; null: not flipped
};

// Small arrays that a pass needs beside the arena. They are kept between passes, so that nothing is allocated anew.
template <class Real>
struct PassScratch {
    std::vector<std::int32_t> rows;
    std::vector<std::int32_t> columns;
    std::vector<std::int32_t> partner;
    std::vector<std::int32_t> feature;
    std::vector<Real> row_scale;
    std::vector<Real> column_scale;
    std::vector<double> sums;
    std::vector<bool> reached;  // by value
};

// One way through the network, node by node: forward, back again, and the update. Until the update weights and momentum
// are only read, and each of the functions before it throws Cancelled soon after it is asked to; then the pass is of no
// more use. Nothing stops the update.
template <class Real>
class Pass {
  public:
    Pass(const Lowering& lowering, const Kernels<Real>& kernels, const Program<Real>& program,
         const Survivors& survivors, std::span<const Tensors<Real>> tensors, Arena& arena, ThreadPool& pool,
         PassScratch<Real>& scratch, const Cancellation& cancellation);

    void load(const Images& images);
    // `draws`: for every dropout operation of the plan in order, the surviving elements' random numbers [N, C, H, W].
    void forward(std::span<const float* const> draws);
    // Start the gradient; return the mean loss.
    double loss(const std::int64_t* labels);
    // The gradients of all weights.
    void backward();
    void update(const Optimiser& optimiser);
    // The class scores, [N][classes].
    void read_scores(Real* scores) const;
    // Mean and biased variance of every channel of what a batch norm saw.
    void read_statistics(int value, double* mean, double* variance) const;

  private:
    // In pass_forward.cpp.
    void forward_convolution(std::size_t position);
    void forward_depthwise(std::size_t position);
    void forward_chain(std::size_t position);
    void forward_pool(std::size_t position);
    void forward_multiply(std::size_t position);
    void forward_copy(std::size_t position);
    void forward_flatten(std::size_t position);
    void forward_dropout(std::size_t position, const float* draws);
    void take_moments(std::size_t position, View<const Real> made, int pixels, int channels);
    void finish_moments(const Real* moments, int units, int root, int first_channel, int channels, int pixels);

    // In pass_backward.cpp.
    void find_reached();
    bool passes_on(int operation) const;
    void backward_convolution(std::size_t position);
    void backward_depthwise(std::size_t position);
    void backward_chain(std::size_t position);
    void backward_pool(std::size_t position);
    void backward_multiply(std::size_t position);
    void backward_copy(std::size_t position);
    void backward_flatten(std::size_t position);
    void backward_dropout(std::size_t position);
    void differentiate_bias(std::size_t position);
    void hand_on(const Gradient& gradient, View<const Real> from, int pixels, int channels, const Cut& cut);
    const ThroughActivation<Real>* through(std::size_t position, ThroughActivation<Real>& space) const;
    void clear(const Gradient& gradient);
    View<const Real> input_again(std::size_t position);
    void convolution_to_input(std::size_t position, int group);
    // Returns how many elements of the result this group takes.
    std::ptrdiff_t differentiate_weights(std::size_t position, int group, View<const Real> input, Real* result);

    void add_parts(const Real* from, int parts, int rows, std::ptrdiff_t row_elements, Real* to) const;

    // In pass_update.cpp.
    void update_convolution(std::size_t position, const Optimiser& optimiser);
    void update_depthwise(std::size_t position, const Optimiser& optimiser);
    void update_bias(std::size_t position, const Optimiser& optimiser);
    void update_batch_norm(std::size_t position, const Optimiser& optimiser);

    // In pass.cpp: where things lie.
    template <class Other = Real>
    Other* buffer(int number) const;
    View<Real> view_of(int number, int root, int first_channel) const;
    View<Real> value(int value, int from_channel = 0) const;
    View<Real> gradient(int value, int from_channel = 0) const;
    const Real* live() const;
    std::span<const std::int32_t> group_rows(const Node& node, int group);
    std::span<const std::int32_t> group_columns(const Node& node, int group);
    const Real* column_scales(const Node& node, int group);
    Pack<Real> pack_for(const Node& node, int group, bool backward);
    void run_pack(const Pack<Real>& pack);
    const Tensors<Real>& tensors(const Node& node) const { return tensors_[static_cast<std::size_t>(node.operation)]; }
    double values_per_channel(const Shape& shape) const;

    // Does the units of a task, or throws Cancelled, and has left some of them out.
    template <class Work>
    void share(int units, double elements, const Work& work) const;
    // Does all of them, whoever cancels.
    template <class Work>
    void share_all(int units, double elements, const Work& work) const;

    const Lowering& lowering_;
    const Plan& plan_;
    const Kernels<Real>& kernels_;
    const Program<Real>& program_;
    const Survivors& survivors_;
    std::span<const Tensors<Real>> tensors_;
    Arena& arena_;
    ThreadPool& pool_;
    PassScratch<Real>& scratch_;
    const Cancellation& cancellation_;
};

// Work on fewer elements than this is not worth waking another thread for.
inline constexpr double shared_elements = 16384.0;

template <class Real>
template <class Work>
void Pass<Real>::share(int units, double elements, const Work& work) const {
    share_all(units, elements, [&](int unit, int thread) {
        if (!cancellation_.cancelled()) {
            work(unit, thread);
        }
    });
    // Nothing takes a cancellation back: when there is none by now, no thread has seen one.
    if (cancellation_.cancelled()) {
        throw Cancelled();
    }
}

template <class Real>
template <class Work>
void Pass<Real>::share_all(int units, double elements, const Work& work) const {
    const int threads = elements < shared_elements ? 1 : program_.circumstances().threads;
    pool_.run(units, threads, work);
}

template <class Real>
template <class Other>
Other* Pass<Real>::buffer(int number) const {
    return number == no_buffer
               ? nullptr
               : reinterpret_cast<Other*>(static_cast<std::byte*>(arena_.data()) + program_.offset(number));
}

}  // namespace distreal
