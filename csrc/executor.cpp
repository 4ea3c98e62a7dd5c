#include "executor.hpp"

#include <algorithm>

namespace distreal {
namespace {

// Programs that are kept: a table has up to 64 rows, and each has a program for every number of threads.
constexpr std::size_t known_programs = 128;

// All that a program depends on: how many channels of every value survive, by conv-groups where there are any.
void count_survivors(const Plan& plan, const Survivors& survivors, std::vector<std::int32_t>& counts) {
    counts.clear();
    for (int value = 0; value < plan.values(); ++value) {
        counts.push_back(survivors.count(value));
    }
    for (int index = 0; index < static_cast<int>(plan.operations().size()); ++index) {
        const Operation& operation = plan.operation(index);
        if (operation.kind != Kind::conv2d || operation.groups == 1 || plan.depthwise(index)) {
            continue;
        }
        for (const int value : {operation.inputs[0], index + 1}) {
            for (int group = 0; group < operation.groups; ++group) {
                counts.push_back(survivors.part(value, plan.shape(value).channels, group, operation.groups).first);
            }
        }
    }
}

// Every filter, and the last entry for what is never dropped, as a span that owns nothing.
class Everything {
  public:
    explicit Everything(const Plan& plan)
        : size_(static_cast<std::size_t>(plan.filter_count()) + 1), kept_(std::make_unique<bool[]>(size_)) {
        std::fill_n(kept_.get(), size_, true);
    }
    std::span<const bool> span() const { return {kept_.get(), size_}; }

  private:
    std::size_t size_;
    std::unique_ptr<bool[]> kept_;
};

}  // namespace

template <class Real>
Executor<Real>::Executor(std::shared_ptr<const Lowering> lowering, const Kernels<Real>& kernels,
                         std::vector<Tensors<Real>> tensors)
    : lowering_(std::move(lowering)), kernels_(kernels), tensors_(std::move(tensors)) {}

template <class Real>
const Program<Real>& Executor<Real>::program_for(const Survivors& survivors, const Circumstances& circumstances) {
    count_survivors(plan(), survivors, counts_);
    const auto found = std::ranges::find_if(known_, [&](const Known& known) {
        return known.program.circumstances() == circumstances && known.counts == counts_;
    });
    if (found != known_.end()) {
        known_.splice(known_.begin(), known_, found);
    } else {
        known_.push_front({counts_, Program<Real>(*lowering_, kernels_, survivors, circumstances)});
        if (known_.size() > known_programs) {
            known_.pop_back();
        }
    }
    const Program<Real>& program = known_.front().program;
    arena_.grow(program.bytes());
    return program;
}

template <class Real>
Pass<Real> Executor<Real>::pass_for(const Survivors& survivors, const Circumstances& circumstances,
                                    const Cancellation& cancellation) {
    if (cancellation.cancelled()) {
        throw Cancelled();  // the first program of a row may take a while to plan
    }
    const Program<Real>& program = program_for(survivors, circumstances);
    return Pass<Real>(*lowering_, kernels_, program, survivors, tensors_, arena_, pool_, scratch_, cancellation);
}

template <class Real>
double Executor<Real>::step(const Images& images, const std::int64_t* labels, std::span<const bool> kept,
                            std::span<const float* const> draws, const Optimiser& optimiser, int threads,
                            const Cancellation& cancellation) {
    const Survivors survivors(plan(), kept);
    Pass<Real> pass = pass_for(survivors, {Mode::train, images.count, threads}, cancellation);
    pass.load(images);
    pass.forward(draws);
    const double loss = pass.loss(labels);
    pass.backward();
    pass.update(optimiser);
    return loss;
}

template <class Real>
void Executor<Real>::predict(const Images& images, Real* scores, int threads, const Cancellation& cancellation) {
    const Everything everything(plan());
    const Survivors survivors(plan(), everything.span());
    Pass<Real> pass = pass_for(survivors, {Mode::predict, images.count, threads}, cancellation);
    pass.load(images);
    pass.forward({});
    pass.read_scores(scores);
}

template <class Real>
std::vector<std::pair<std::vector<double>, std::vector<double>>> Executor<Real>::batch_moments(
    const Images& images, int threads, const Cancellation& cancellation) {
    const Everything everything(plan());
    const Survivors survivors(plan(), everything.span());
    Pass<Real> pass = pass_for(survivors, {Mode::moments, images.count, threads}, cancellation);
    std::vector<std::pair<std::vector<double>, std::vector<double>>> moments;
    pass.load(images);
    pass.forward({});
    for (const Operation& operation : plan().operations()) {
        if (operation.kind == Kind::batch_norm) {
            const std::size_t channels = static_cast<std::size_t>(operation.shape.channels);
            auto& [mean, variance] = moments.emplace_back(std::vector<double>(channels), std::vector<double>(channels));
            pass.read_statistics(operation.inputs[0], mean.data(), variance.data());
        }
    }
    return moments;
}

std::size_t step_bytes(const Lowering& lowering, const Kernels<float>& kernels, std::span<const bool> kept,
                       int images) {
    const Survivors survivors(lowering.plan(), kept);
    return Program<float>(lowering, kernels, survivors, {Mode::train, images, 1}).bytes();
}

template class Executor<float>;
template class Executor<double>;

}  // namespace distreal
