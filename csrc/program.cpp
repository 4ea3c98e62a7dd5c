#include "program.hpp"

#include <algorithm>
#include <span>

#include "memory_plan.hpp"

namespace distreal {
namespace {

std::size_t at(int index) { return static_cast<std::size_t>(index); }

// Parts of about this size keep what a unit works on in a core's own cache.
constexpr std::size_t unit_bytes = 128 * 1024;
// A vector's worth of positions at a time needs some positions to choose from.
constexpr int unit_positions = 48;
// Units for each thread, so that threads that are slower, or come late, delay nobody much.
constexpr int units_per_thread = 4;

Cut cut_for(int blocks, int pixels, std::size_t pixel_bytes, int threads) {
    if (pixels < unit_positions) {
        const int wanted = (unit_positions + pixels - 1) / pixels;
        const int shared = threads == 1 ? blocks : std::max(1, blocks / (2 * threads));
        return {blocks, std::clamp(wanted, 1, shared), 1};
    }
    const std::size_t parts = at(pixels) * pixel_bytes / unit_bytes;
    int bands = static_cast<int>(std::clamp<std::size_t>(parts, 1, at(pixels / unit_positions)));
    if (threads > 1) {
        bands = std::max(bands, std::min((units_per_thread * threads + blocks - 1) / blocks, pixels / 8));
    }
    return {blocks, 1, bands};
}

// Collects buffers with the time from their first to their last use.
class Buffers {
  public:
    int add(std::size_t bytes, int first, int last) {
        buffers_.push_back({bytes, first, last});
        return static_cast<int>(buffers_.size()) - 1;
    }
    const std::vector<Buffer>& all() const { return buffers_; }

  private:
    std::vector<Buffer> buffers_;
};

struct Lifetime {
    int first = -1;
    int last = -1;

    void touch(int time) {
        first = first < 0 ? time : std::min(first, time);
        last = std::max(last, time);
    }
    bool used() const { return first >= 0; }
};

// The weight gradient of every conv-group, as far as it must be known how to cut it. Some have no inputs or no outputs.
template <class Real>
std::vector<WeightGradientTask<Real>> weight_gradients(const Plan& plan, const Survivors& survivors, const Node& node,
                                                       int blocks) {
    const Operation& operation = plan.operation(node.operation);
    const int in_channels = plan.shape(node.inputs[0]).channels;
    std::vector<WeightGradientTask<Real>> tasks;
    for (int group = 0; group < operation.groups; ++group) {
        const auto [first_in, last_in] = survivors.part(node.inputs[0], in_channels, group, operation.groups);
        const auto [first_out, last_out] = survivors.part(node.out, operation.shape.channels, group, operation.groups);
        WeightGradientTask<Real> task{};
        task.window = &operation.window;
        task.runs = &plan.geometry(node.operation).runs;
        task.in_channels = last_in - first_in;
        task.out_channels = last_out - first_out;
        task.blocks = blocks;
        task.parts = 1;
        tasks.push_back(task);
    }
    return tasks;
}

// Where outputs alone make too few units to share, parts of the rows make more of them: as many in every conv-group as
// the one with the most units needs.
template <class Real>
int parts_of(const Kernels<Real>& kernels, std::span<const WeightGradientTask<Real>> tasks, int threads, int height) {
    int units = 1;
    for (const WeightGradientTask<Real>& task : tasks) {
        if (task.in_channels > 0 && task.out_channels > 0) {
            units = std::max(units, kernels.weight_gradient_units(task));
        }
    }
    return threads == 1 ? 1 : std::clamp((2 * threads + units - 1) / units, 1, tasks.front().blocks * height);
}

}  // namespace

template <class Real>
Program<Real>::Program(const Lowering& lowering, const Kernels<Real>& kernels, const Survivors& survivors,
                       const Circumstances& circumstances)
    : circumstances_(circumstances), blocks_((circumstances.images + kernels.lanes - 1) / kernels.lanes) {
    const Plan& plan = lowering.plan();
    const auto& nodes = lowering.nodes();
    const int count = static_cast<int>(nodes.size());
    const bool train = circumstances.mode == Mode::train;
    const bool moments = circumstances.mode != Mode::predict;
    const int threads = circumstances.threads;
    const std::size_t vector_bytes = at(kernels.lanes) * sizeof(Real);

    // Time 0 prepares the images, 1.. goes forward, then comes the loss, then backward, then the update.
    const int loss_time = 1 + count;
    const auto forward_time = [](int position) { return 1 + position; };
    const auto backward_time = [&](int position) { return loss_time + count - position; };
    const int update_time = backward_time(0) + 1;
    const int end = train ? update_time : loss_time;

    Buffers buffers;
    std::vector<Lifetime> values(at(plan.values()));
    std::vector<Lifetime> gradients(at(plan.values()));
    std::vector<Lifetime> statistics(at(plan.values()));
    const auto root = [&](int value) { return at(lowering.place(value).root); };
    const auto gradient_root = [&](int value) { return at(lowering.gradient_root(lowering.place(value).root)); };

    values[root(0)].touch(0);
    values[root(plan.output())].touch(loss_time);
    if (train) {
        gradients[gradient_root(plan.output())].touch(loss_time);
    }
    if (circumstances.images % kernels.lanes != 0) {
        live_ = buffers.add(at(blocks_) * vector_bytes, 0, end);
    }
    const Shape& input = plan.shape(0);
    input_cut_ = cut_for(blocks_, input.pixels(), at(input.channels) * vector_bytes, threads);
    if (moments && lowering.input_moments()) {
        input_moments_ = buffers.add(at(input_cut_.units() * 2 * input.channels) * sizeof(Real), 0, 0);
        statistics[root(0)].touch(0);
    }

    const auto value_bytes = [&](int value) {
        return at(blocks_) * at(plan.shape(value).pixels()) * sizeof(Real) *
               static_cast<std::size_t>(pixel_stride_for(survivors.count(value), kernels.lanes, sizeof(Real)));
    };
    // The gradient of weights needs what they were multiplied with.
    const auto need_input = [&](const Node& node, NodeBuffers& made, int backward) {
        if (node.makes_again >= 0) {
            made.again = buffers.add(value_bytes(node.inputs[0]), backward, backward);
        } else {
            values[root(node.inputs[0])].touch(backward);
        }
    };
    const auto need_parts = [&](NodeBuffers& made, std::size_t result, int backward) {
        if (made.parts > 1) {
            made.result_parts = buffers.add(at(made.parts) * result * sizeof(Real), backward, backward);
        }
    };
    nodes_.resize(nodes.size());
    for (int position = 0; position < count; ++position) {
        const Node& node = nodes[at(position)];
        NodeBuffers& made = nodes_[at(position)];
        const int forward = forward_time(position);
        const int backward = backward_time(position);
        const bool goes_back = train && node.has_gradient;
        const int out_channels = survivors.count(node.kind == NodeKind::copy ? node.inputs[0] : node.out);
        const int in_channels = survivors.count(node.inputs[0]);
        const Shape& out = plan.shape(node.out);
        const Shape& in = plan.shape(node.inputs[0]);
        const Operation& operation = plan.operation(node.operation);
        made.forward_cut =
            cut_for(blocks_, out.pixels(), at(std::max(in_channels, out_channels)) * vector_bytes, threads);
        made.backward_cut =
            cut_for(blocks_, in.pixels(), at(std::max(in_channels, out_channels)) * vector_bytes, threads);
        if (node.kind == NodeKind::flatten || (node.kind == NodeKind::pool && out.pixels() == 1)) {
            made.forward_cut = {blocks_, 1, 1};
        }
        if (node.kind == NodeKind::flatten || node.kind == NodeKind::pool) {
            made.backward_cut = {blocks_, 1, 1};
        }

        values[root(node.out)].touch(forward);
        for (const int value : node.inputs) {
            values[root(value)].touch(forward);
        }
        if (moments && node.moments) {
            const int units = made.forward_cut.units();
            made.moments = buffers.add(at(units) * 2 * at(out_channels) * sizeof(Real), forward, forward);
            statistics[root(node.out)].touch(forward);
        }
        if (node.batch_norm >= 0) {
            made.parameters = buffers.add(3 * at(in_channels) * sizeof(Real), forward, goes_back ? backward : forward);
            statistics[root(node.inputs[0])].touch(forward);
            // Statistics that were asked for are read at the end.
            if (goes_back || circumstances.mode == Mode::moments) {
                statistics[root(node.inputs[0])].touch(goes_back ? backward : loss_time);
            }
        }
        if (goes_back) {
            gradients[gradient_root(node.out)].touch(backward);
            for (const Gradient& gradient : node.gradients) {
                if (gradient.handing != Handing::none) {
                    gradients[gradient_root(gradient.value)].touch(backward);
                }
            }
        }

        switch (node.kind) {
            case NodeKind::convolution: {
                const bool to_input = goes_back && node.gradients[0].handing != Handing::none;
                const auto tasks = weight_gradients<Real>(plan, survivors, node, blocks_);
                made.parts = parts_of(kernels, std::span(tasks), threads, out.height);
                std::size_t packed = 0;
                std::size_t backward_packed = 0;
                std::size_t result = 0;
                std::size_t largest_result = 0;
                for (WeightGradientTask<Real> task : tasks) {
                    const int from = task.in_channels;
                    const int to = task.out_channels;
                    const int taps = operation.window.taps();
                    packed = std::max(packed, kernels.packed_size(to, from, taps));
                    backward_packed = std::max(backward_packed, kernels.packed_size(from, to, taps));
                    if (from == 0 || to == 0) {
                        continue;  // such a conv-group has no weights to train
                    }
                    task.parts = made.parts;
                    result += at(to) * at(from) * at(taps);
                    largest_result = std::max(largest_result, at(to) * at(from) * at(taps));
                    made.thread_scratch = std::max(made.thread_scratch, kernels.weight_gradient_scratch(task));
                }
                made.packed = buffers.add(packed * sizeof(Real), forward, forward);
                if (goes_back) {
                    need_input(node, made, backward);
                    // Scratch of different threads shares no cache line.
                    made.thread_scratch = (made.thread_scratch + 31) / 32 * 32;
                    made.result = buffers.add(result * sizeof(Real), backward, update_time);
                    need_parts(made, largest_result, backward);
                    made.scratch = buffers.add(made.thread_scratch * at(threads) * sizeof(Real), backward, backward);
                }
                if (to_input) {
                    made.backward_packed = buffers.add(backward_packed * sizeof(Real), backward, backward);
                }
                break;
            }
            case NodeKind::depthwise:
                made.packed = buffers.add(at(out_channels) * at(operation.window.taps()) * sizeof(Real), forward,
                                          goes_back ? backward : forward);
                if (goes_back) {
                    need_input(node, made, backward);
                    made.parts = threads > 1 ? std::min(blocks_, 2) : 1;
                    const std::size_t result = at(out_channels) * at(operation.window.taps());
                    made.result = buffers.add(result * sizeof(Real), backward, update_time);
                    need_parts(made, result, backward);
                }
                break;
            case NodeKind::chain:
                if (goes_back) {
                    if (node.batch_norm >= 0 || node.activation == Activation::hardswish) {
                        values[root(node.inputs[0])].touch(backward);
                    }
                    if (node.mask_from_out()) {
                        values[root(node.out)].touch(backward);
                    }
                    if (node.batch_norm >= 0) {
                        made.coefficients = buffers.add(3 * at(in_channels) * sizeof(Real), backward, backward);
                        made.vector_gradients = buffers.add(2 * at(in_channels) * sizeof(Real), backward, update_time);
                        if (!node.through) {
                            const int units = made.backward_cut.units();
                            made.sums = buffers.add(at(units) * 2 * at(in_channels) * sizeof(Real), backward, backward);
                        }
                    }
                }
                break;
            case NodeKind::pool:
                if (goes_back && operation.kind == Kind::max_pool) {
                    values[root(node.inputs[0])].touch(backward);
                }
                break;
            case NodeKind::multiply:
                if (goes_back) {
                    values[root(node.inputs[0])].touch(backward);
                    values[root(node.inputs[1])].touch(backward);
                }
                break;
            case NodeKind::dropout:
                if (train) {
                    const std::size_t bytes = at(blocks_) * at(out.pixels()) * at(out_channels) * vector_bytes;
                    made.keep = buffers.add(bytes, forward, goes_back ? backward : forward);
                }
                break;
            case NodeKind::copy:
            case NodeKind::flatten:
                break;
        }
        // Sums of gradients: of biases, or for the batch norm whose gradient this completes.
        if (goes_back && (node.kind == NodeKind::convolution || node.kind == NodeKind::depthwise)) {
            if (operation.bias) {
                const int units = made.forward_cut.units();
                made.coefficients =
                    buffers.add(at(units) * at(2) * at(out_channels) * sizeof(Real), backward, backward);
                made.vector_gradients = buffers.add(at(out_channels) * sizeof(Real), backward, update_time);
            }
            if (node.completes >= 0) {
                const int units = made.backward_cut.units();
                const int chain_backward = backward_time(node.completes);
                made.sums = buffers.add(at(units) * 2 * at(in_channels) * sizeof(Real), backward, chain_backward);
                // The batch norm's own input is read here already.
                values[root(nodes[at(node.completes)].inputs[0])].touch(backward);
            }
        }
    }

    const auto place_all = [&](std::vector<int>& ids, const std::vector<Lifetime>& lifetimes, auto bytes_of) {
        ids.assign(lifetimes.size(), no_buffer);
        for (int value = 0; value < plan.values(); ++value) {
            if (lifetimes[at(value)].used()) {
                ids[at(value)] = buffers.add(bytes_of(value), lifetimes[at(value)].first, lifetimes[at(value)].last);
            }
        }
    };
    place_all(values_, values, value_bytes);
    place_all(gradients_, gradients, value_bytes);
    place_all(statistics_, statistics, [&](int value) { return 2 * at(survivors.count(value)) * sizeof(double); });

    Placement placement = place_buffers(buffers.all());
    offsets_ = std::move(placement.offsets);
    bytes_ = placement.bytes;
}

template class Program<float>;
template class Program<double>;

}  // namespace distreal
