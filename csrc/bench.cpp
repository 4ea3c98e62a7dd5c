#include "bench.hpp"

#include <time.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "arena.hpp"
#include "kernels/choose.hpp"
#include "kernels/kernels.hpp"
#include "kernels/peak.hpp"
#include "threads.hpp"
#include "weight_parts.hpp"

namespace distreal {
namespace {

double seconds_on(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One thread's own time does not count what other processes do meanwhile; several threads have only the wall clock in
// common.
clockid_t clock_for(int threads) { return threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC; }

// ---- The peak of a core ----

#if defined(__x86_64__)
#define DISTREAL_VECTOR_REGISTER "+x"
#elif defined(__aarch64__)
#define DISTREAL_VECTOR_REGISTER "+w"
#else
#define DISTREAL_VECTOR_REGISTER "+m"
#endif

constexpr int plain_chains = 12;

// One number at a time: each chain goes through a register of its own, so that the compiler makes no vectors of them.
float run_plain_peak(long iterations) {
    float factor = 0.5F;
    float addend = 1.0F;
    float sums[plain_chains] = {};
    asm volatile("" : DISTREAL_VECTOR_REGISTER(factor), DISTREAL_VECTOR_REGISTER(addend));
    for (long iteration = 0; iteration < iterations; ++iteration) {
#pragma GCC unroll 12
        for (int chain = 0; chain < plain_chains; ++chain) {
            float& sum = sums[chain];
            sum = sum * factor + addend;
            asm volatile("" : DISTREAL_VECTOR_REGISTER(sum));
        }
    }
    return std::accumulate(std::begin(sums), std::end(sums), 0.0F);
}

PeakLoop peak_loop(InstructionSet set) {
    switch (set) {
#if defined(__x86_64__)
        case InstructionSet::avx512:
            return avx512_peak();
        case InstructionSet::avx512vl:
            return avx512vl_peak();
        case InstructionSet::avx2:
            return avx2_peak();
#elif defined(__aarch64__)
        case InstructionSet::neon:
            return neon_peak();
#endif
        default:
            return {2.0 * plain_chains, run_plain_peak};
    }
}

// ---- Memory ----

// Hands out parts of one block, as a training step's memory plan does: buffers lie side by side.
class Memory {
  public:
    explicit Memory(std::size_t elements) : arena_(elements * sizeof(float)) {}

    static std::size_t padded(std::size_t elements) {
        constexpr std::size_t line = 64 / sizeof(float);
        return (elements + line - 1) / line * line;
    }

    float* take(std::size_t elements) {
        float* const taken = reinterpret_cast<float*>(arena_.data()) + used_;
        used_ += padded(elements);
        return taken;
    }

  private:
    Arena arena_;
    std::size_t used_ = 0;
};

// What weights, values and gradients look like to the processor: neither zeros nor denormals.
void fill(float* memory, std::size_t elements, std::minstd_rand& random) {
    std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
    std::generate_n(memory, elements, [&] { return uniform(random); });
}

// The maps of all images.
struct Maps {
    int channels;
    int lanes;
    Plane plane;
    int images;
    float* memory = nullptr;

    int blocks() const { return (images + lanes - 1) / lanes; }
    std::ptrdiff_t pixel_stride() const { return pixel_stride_for(channels, lanes, sizeof(float)); }
    std::ptrdiff_t block_stride() const { return pixel_stride() * plane.pixels(); }
    std::size_t elements() const {
        return static_cast<std::size_t>(block_stride()) * static_cast<std::size_t>(blocks());
    }

    View<float> from_channel(int channel) const {
        return {memory + static_cast<std::ptrdiff_t>(channel) * lanes, block_stride(), pixel_stride()};
    }

    // Idle lanes stay zero.
    void fill_live(std::minstd_rand& random) const {
        for (int block = 0; block < blocks(); ++block) {
            const auto live = static_cast<std::size_t>(std::min(lanes, images - block * lanes));
            float* const of_block = memory + block * block_stride();
            for (std::ptrdiff_t element = 0; element < block_stride(); element += lanes) {
                fill(of_block + element, live, random);
            }
        }
    }
};

// ---- The convolution ----

// The survivors of one conv-group, which are a convolution of their own; of a depthwise one, all survivors.
struct Group {
    int first_in;
    int first_out;
    std::vector<std::int32_t> in;  // within the group
    std::vector<std::int32_t> out;
};

std::vector<std::int32_t> first_ones(int count) {
    std::vector<std::int32_t> indices(static_cast<std::size_t>(count));
    std::iota(indices.begin(), indices.end(), 0);
    return indices;
}

std::vector<Group> groups_of(const ConvolutionProblem& problem) {
    if (problem.depthwise()) {
        return {{0, 0, first_ones(problem.kept_in), first_ones(problem.kept_out)}};
    }
    std::vector<Group> groups;
    const int inputs = problem.in_channels / problem.groups;
    const int outputs = problem.out_channels / problem.groups;
    for (int group = 0; group < problem.groups; ++group) {
        const int in = std::clamp(problem.kept_in - group * inputs, 0, inputs);
        const int out = std::clamp(problem.kept_out - group * outputs, 0, outputs);
        if (in > 0 && out > 0) {
            groups.push_back({group * inputs, group * outputs, first_ones(in), first_ones(out)});
        }
    }
    return groups;
}

int windows_along(const Window& window, std::size_t axis, int side) {
    const int room = side + 2 * window.padding[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1;
    return room < 0 ? 0 : room / window.stride[axis] + 1;
}

Plane out_plane(const ConvolutionProblem& problem) {
    return {windows_along(problem.window, 0, problem.in.height), windows_along(problem.window, 1, problem.in.width)};
}

// Everything that one convolution needs, made once.
class Convolution {
  public:
    Convolution(const ConvolutionProblem& problem, int threads, const Kernels<float>& kernels)
        : problem_(problem),
          kernels_(kernels),
          threads_(threads),
          parts_(threads > 1 ? std::min(2, (problem.images + kernels.lanes - 1) / kernels.lanes) : 1),
          blocks_((problem.images + kernels.lanes - 1) / kernels.lanes),
          taps_(problem.window.taps()),
          weights_per_row_((problem.depthwise() ? 1 : problem.in_channels / problem.groups) * taps_),
          out_plane_(out_plane(problem)),
          forward_(forward_gather(problem.window, problem.in, out_plane_)),
          backward_(backward_gather(problem.window, problem.in, out_plane_)),
          runs_(tap_runs(problem.window, problem.in, out_plane_)),
          groups_(groups_of(problem)),
          in_{problem.kept_in, kernels.lanes, problem.in, problem.images},
          out_{problem.kept_out, kernels.lanes, out_plane_, problem.images} {
        for (int in = 0; in <= problem.kept_in; ++in) {
            first_.push_back(in * (problem.out_channels / problem.in_channels));
        }
        for (int out = 0; out < problem.kept_out; ++out) {
            partner_.push_back(out / std::max(1, problem.out_channels / problem.in_channels));
        }
        lay_out();
    }

    void run(Direction direction) {
        for (const Group& group : groups_) {
            switch (direction) {
                case Direction::forward:
                    problem_.depthwise() ? forward_depthwise(group) : gather(group, false);
                    break;
                case Direction::backward_data:
                    problem_.depthwise() ? backward_depthwise(group) : gather(group, true);
                    break;
                case Direction::backward_weights:
                    problem_.depthwise() ? differentiate_depthwise(group) : differentiate(group);
                    break;
            }
        }
    }

  private:
    // As training steps cut their work: what a unit works on stays in a core's own cache, and every thread gets several
    // units, so that one that is held up does not hold up all.
    Cut cut(Plane plane) const {
        const int pixels = plane.pixels();
        const auto pixel_bytes = static_cast<std::size_t>(std::max(problem_.kept_in, problem_.kept_out)) *
                                 static_cast<std::size_t>(kernels_.lanes) * sizeof(float);
        const int most = pixels / 48;
        if (most < 1) {
            const int shared = threads_ == 1 ? blocks_ : std::max(1, blocks_ / (2 * threads_));
            return {blocks_, std::clamp((48 + pixels - 1) / pixels, 1, shared), 1};
        }
        const auto parts = static_cast<std::size_t>(pixels) * pixel_bytes / (128 * 1024);
        int bands = static_cast<int>(std::clamp<std::size_t>(parts, 1, static_cast<std::size_t>(most)));
        if (threads_ > 1) {
            bands = std::max(bands, std::min((4 * threads_ + blocks_ - 1) / blocks_, pixels / 8));
        }
        return {blocks_, 1, bands};
    }

    std::ptrdiff_t row(int out) const { return static_cast<std::ptrdiff_t>(out) * weights_per_row_; }

    Pack<float> pack_of(const Group& group, bool backward) const {
        const auto ins = static_cast<int>(group.in.size());
        const auto outs = static_cast<int>(group.out.size());
        return {.weights = weights_ + row(group.first_out),
                .to_index = backward ? group.in.data() : group.out.data(),
                .from_index = backward ? group.out.data() : group.in.data(),
                .to_stride = backward ? taps_ : weights_per_row_,
                .from_stride = backward ? weights_per_row_ : taps_,
                .to_scale = nullptr,
                .from_scale = nullptr,
                .to_channels = backward ? ins : outs,
                .from_channels = backward ? outs : ins,
                .taps = taps_,
                .packed = packed_};
    }

    WeightGradientTask<float> weight_task(const Group& group) const {
        return {.window = &problem_.window,
                .runs = &runs_,
                .in = in_.from_channel(group.first_in).as_const(),
                .gradient = out_.from_channel(group.first_out).as_const(),
                .in_channels = static_cast<int>(group.in.size()),
                .out_channels = static_cast<int>(group.out.size()),
                .blocks = blocks_,
                .parts = parts_,
                .result = result_};
    }

    void lay_out() {
        const auto weights =
            static_cast<std::size_t>(problem_.out_channels) * static_cast<std::size_t>(weights_per_row_);
        std::size_t packed = 0;
        std::size_t result = 0;
        for (const Group& group : groups_) {
            const auto ins = static_cast<int>(group.in.size());
            const auto outs = static_cast<int>(group.out.size());
            const int inputs = problem_.depthwise() ? 1 : ins;
            packed = std::max({packed, static_cast<std::size_t>(outs * taps_),
                               kernels_.packed_size(outs, inputs, taps_), kernels_.packed_size(inputs, outs, taps_)});
            result = std::max(result, static_cast<std::size_t>(outs) * static_cast<std::size_t>(inputs * taps_));
            if (!problem_.depthwise()) {
                thread_scratch_ =
                    std::max(thread_scratch_, Memory::padded(kernels_.weight_gradient_scratch(weight_task(group))));
            }
        }
        result *= static_cast<std::size_t>(parts_);
        const std::size_t scratch = thread_scratch_ * static_cast<std::size_t>(threads_);
        std::size_t total = 0;
        for (const std::size_t elements :
             {weights, weights, packed, result, scratch, in_.elements(), out_.elements()}) {
            total += Memory::padded(elements);
        }
        memory_ = Memory(total);
        weights_ = memory_.take(weights);
        momentum_ = memory_.take(weights);
        packed_ = memory_.take(packed);
        result_ = memory_.take(result);
        scratch_ = memory_.take(scratch);
        in_.memory = memory_.take(in_.elements());
        out_.memory = memory_.take(out_.elements());
        std::minstd_rand random(1);
        fill(weights_, weights, random);
        in_.fill_live(random);
        out_.fill_live(random);
    }

    void share(int units, WorkRef work) { pool_.run(units, threads_, work); }

    void gather(const Group& group, bool backward) {
        const Pack<float> pack = pack_of(group, backward);
        share(kernels_.pack_units(pack), [&](int unit, int) { kernels_.pack(pack, unit); });
        const View<float> in = in_.from_channel(group.first_in);
        const View<float> out = out_.from_channel(group.first_out);
        const GatherTask<float> task{.gather = backward ? &backward_ : &forward_,
                                     .from = (backward ? out : in).as_const(),
                                     .to = backward ? in : out,
                                     .from_channels = pack.from_channels,
                                     .to_channels = pack.to_channels,
                                     .packed = packed_,
                                     .bias = nullptr,
                                     .accumulate = false,
                                     .cut = cut(backward ? problem_.in : out_plane_),
                                     .moments = nullptr,
                                     .live = nullptr,
                                     .through = nullptr};
        share(task.cut.units(), [&](int unit, int) { kernels_.gather(task, unit); });
    }

    void differentiate(const Group& group) {
        const WeightGradientTask<float> task = weight_task(group);
        share(kernels_.weight_gradient_units(task), [&](int unit, int thread) {
            kernels_.weight_gradient(task, unit, scratch_ + static_cast<std::size_t>(thread) * thread_scratch_);
        });
        apply(group, task.in_channels);
    }

    void forward_depthwise(const Group& group) {
        DepthwiseTask<float> task = depthwise_task(group);
        task.gather = &forward_;
        task.from = in_.from_channel(0).as_const();
        task.to = out_.from_channel(0);
        task.from_channels = problem_.kept_in;
        task.to_channels = problem_.kept_out;
        task.partner = partner_.data();
        task.cut = cut(out_plane_);
        share(task.cut.units(), [&](int unit, int) { kernels_.depthwise_forward(task, unit); });
    }

    void backward_depthwise(const Group& group) {
        DepthwiseTask<float> task = depthwise_task(group);
        task.gather = &backward_;
        task.from = out_.from_channel(0).as_const();
        task.to = in_.from_channel(0);
        task.from_channels = problem_.kept_out;
        task.to_channels = problem_.kept_in;
        task.first = first_.data();
        task.cut = cut(problem_.in);
        share(task.cut.units(), [&](int unit, int) { kernels_.depthwise_backward(task, unit); });
    }

    DepthwiseTask<float> depthwise_task(const Group& group) {
        for (std::size_t out = 0; out < group.out.size(); ++out) {
            std::copy_n(weights_ + row(group.out[out]), taps_, packed_ + out * static_cast<std::size_t>(taps_));
        }
        DepthwiseTask<float> task{};
        task.window = &problem_.window;
        task.weights = packed_;
        return task;
    }

    void differentiate_depthwise(const Group& group) {
        const DepthwiseWeightTask<float> task{.window = &problem_.window,
                                              .runs = &runs_,
                                              .in = in_.from_channel(0).as_const(),
                                              .gradient = out_.from_channel(0).as_const(),
                                              .partner = partner_.data(),
                                              .out_channels = problem_.kept_out,
                                              .blocks = blocks_,
                                              .parts = parts_,
                                              .result = result_};
        share(kernels_.depthwise_weight_units(task), [&](int unit, int) { kernels_.depthwise_weight(task, unit); });
        apply(group, 1);
    }

    // The optimiser's step; its rate is so small that weights stay ordinary numbers over any number of runs.
    void apply(const Group& group, int columns) {
        const auto rows = static_cast<std::ptrdiff_t>(group.out.size());
        const std::ptrdiff_t row_elements = std::ptrdiff_t{columns} * taps_;
        if (parts_ > 1) {
            share(static_cast<int>(rows), [&](int unit, int) {
                float* first = result_ + unit * row_elements;
                add_parts_of_row(first, parts_, rows * row_elements, row_elements, first);
            });
        }
        const SgdTask<float> task{.weights = weights_ + row(group.first_out),
                                  .momentum = momentum_ + row(group.first_out),
                                  .row_stride = weights_per_row_,
                                  .row = group.out.data(),
                                  .column = group.in.data(),
                                  .rows = static_cast<int>(group.out.size()),
                                  .columns = columns,
                                  .taps = taps_,
                                  .gradient = result_,
                                  .scale = nullptr,
                                  .lr = 1e-7F,
                                  .momentum_factor = 0.9F,
                                  .weight_decay = 5e-4F};
        share(task.rows, [&](int unit, int) { kernels_.sgd(task, unit); });
    }

    const ConvolutionProblem& problem_;
    const Kernels<float>& kernels_;
    int threads_;
    int parts_;  // of weight gradients
    int blocks_;
    int taps_;
    int weights_per_row_;
    Plane out_plane_;
    Gather forward_;
    Gather backward_;
    TapRuns runs_;
    std::vector<Group> groups_;
    Maps in_;
    Maps out_;
    ThreadPool pool_;
    Memory memory_{0};
    float* weights_ = nullptr;
    float* momentum_ = nullptr;
    float* packed_ = nullptr;
    float* result_ = nullptr;
    float* scratch_ = nullptr;
    std::size_t thread_scratch_ = 0;
    std::vector<std::int32_t> first_;    // depthwise: the first output of each input
    std::vector<std::int32_t> partner_;  // depthwise: the input of each output
};

void require(bool holds, const char* otherwise) {
    if (!holds) {
        throw std::invalid_argument(otherwise);
    }
}

}  // namespace

double measure_peak(InstructionSet set, double seconds) {
    const PeakLoop loop = peak_loop(set);
    constexpr int fewest_bursts = 5;
    constexpr double shortest_burst = 0.5e-3;
    float result = 0.0F;
    double best = 0.0;
    long iterations = 1000;
    int bursts = 0;
    const clockid_t clock = clock_for(1);
    const double began = seconds_on(clock);
    while (bursts < fewest_bursts || seconds_on(clock) - began < seconds) {
        const double burst_began = seconds_on(clock);
        result += loop.run(iterations);
        const double burst = seconds_on(clock) - burst_began;
        if (burst < shortest_burst) {
            iterations *= 2;
            continue;
        }
        ++bursts;
        best = std::max(best, loop.flops_per_iteration * static_cast<double>(iterations) / burst);
    }
    asm volatile("" : : "m"(result));
    return best;
}

Direction direction_named(std::string_view name) {
    if (name == "forward") {
        return Direction::forward;
    }
    if (name == "backward_data") {
        return Direction::backward_data;
    }
    require(name == "backward_weights", "the direction is forward, backward_data or backward_weights");
    return Direction::backward_weights;
}

void check_problem(const ConvolutionProblem& problem) {
    constexpr int most = 4096;
    const auto within = [](int lowest, int number, int highest) { return lowest <= number && number <= highest; };
    require(within(1, problem.images, most) && within(1, problem.in_channels, most) &&
                within(1, problem.out_channels, most) && within(1, problem.in.height, most) &&
                within(1, problem.in.width, most),
            "images, channels and sides are 1 to 4096");
    require(within(1, problem.kept_in, problem.in_channels) && within(1, problem.kept_out, problem.out_channels),
            "at least one channel is kept, and at most all");
    require(
        problem.groups >= 1 && problem.in_channels % problem.groups == 0 && problem.out_channels % problem.groups == 0,
        "the groups divide inputs and outputs");
    require(!problem.depthwise() || problem.kept_out == problem.kept_in * (problem.out_channels / problem.in_channels),
            "a depthwise convolution keeps the outputs of the inputs it keeps");
    const Window& window = problem.window;
    for (const std::size_t axis : {0U, 1U}) {
        require(within(1, window.kernel[axis], 256) && within(1, window.stride[axis], 256) &&
                    within(0, window.padding[axis], 256) && within(1, window.dilation[axis], 256),
                "kernel, stride and dilation are 1 to 256, padding 0 to 256");
    }
    const Plane out = out_plane(problem);
    require(out.height > 0 && out.width > 0, "the window is larger than the padded plane");
    constexpr double most_elements = 1 << 28;
    const auto elements = [&](int channels, Plane plane) {
        return static_cast<double>(channels) * plane.height * plane.width * (problem.images + 16);
    };
    require(elements(problem.in_channels, problem.in) < most_elements &&
                elements(problem.out_channels, out) < most_elements &&
                static_cast<double>(problem.in_channels) * problem.out_channels * window.taps() < most_elements,
            "the maps and the weights have less than 2^28 elements each");
}

std::vector<double> time_convolution(const ConvolutionProblem& problem, Direction direction, int repeats, int threads,
                                     InstructionSet set) {
    check_problem(problem);
    require(repeats >= 1, "there is at least one repeat");
    require(1 <= threads && threads <= 256, "threads are 1 to 256");
    Convolution convolution(problem, threads, kernels_of(set));
    convolution.run(direction);
    const clockid_t clock = clock_for(threads);
    std::vector<double> seconds;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        const double began = seconds_on(clock);
        convolution.run(direction);
        seconds.push_back(seconds_on(clock) - began);
    }
    return seconds;
}

}  // namespace distreal
