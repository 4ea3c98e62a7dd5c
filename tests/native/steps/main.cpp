// Trains small random networks with each instruction set's kernels, and holds losses, weights, momentum and predictions
// to those of the plain kernels in double precision; repeats them, and wants the same bits.
//
//     steps CASES [FIRST]     that many networks, from number FIRST on

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu_features.hpp"
#include "executor.hpp"
#include "instruction_set.hpp"
#include "kernels/choose.hpp"
#include "random.hpp"
#include "random_network.hpp"

namespace distreal::stepped {
namespace {

constexpr int steps = 4;
constexpr double bound = 2e-5;  // of differences between numbers of size 1

// What is stepped with: the same for every executor.
struct MiniBatch {
    std::vector<std::uint8_t> pixels;
    std::vector<std::int64_t> labels;
    std::vector<std::int32_t> corners;
    std::vector<std::uint8_t> flips;
    std::vector<std::vector<float>> draws;
    std::unique_ptr<bool[]> kept;
    int images;
    int threads;

    Images as_images() const {
        return {pixels.data(), PixelType::uint8, images, corners.empty() ? nullptr : corners.data(),
                flips.empty() ? nullptr : flips.data()};
    }
};

// Every group keeps at least one filter.
std::unique_ptr<bool[]> random_kept(const Plan& plan, Random& random) {
    auto kept = std::make_unique<bool[]>(static_cast<std::size_t>(plan.filter_count()) + 1);
    std::size_t first = 0;
    for (const int size : plan.group_sizes()) {
        for (const std::int32_t filter : random.survivors(random.between(1, size), size)) {
            kept[first + static_cast<std::size_t>(filter)] = true;
        }
        first += static_cast<std::size_t>(size);
    }
    kept[first] = true;
    return kept;
}

MiniBatch random_batch(const Plan& plan, Random& random) {
    MiniBatch batch;
    batch.images = random.between(5, 9);
    batch.threads = random.between(1, 2);
    batch.kept = random_kept(plan, random);
    const Shape& in = plan.shape(0);
    for (int i = 0; i < batch.images * in.channels * in.pixels(); ++i) {
        batch.pixels.push_back(static_cast<std::uint8_t>(random.between(0, 255)));
    }
    for (int n = 0; n < batch.images; ++n) {
        batch.labels.push_back(random.between(0, plan.shape(plan.output()).channels - 1));
    }
    const int margin = plan.preprocessing().crop_padding;
    for (int i = 0; margin > 0 && i < 2 * batch.images; ++i) {
        batch.corners.push_back(random.between(0, 2 * margin));
    }
    for (int n = 0, flipped = random.between(0, 1); flipped == 1 && n < batch.images; ++n) {
        batch.flips.push_back(static_cast<std::uint8_t>(random.between(0, 1)));
    }
    for (int index = 0; index < static_cast<int>(plan.operations().size()); ++index) {
        if (plan.operation(index).kind == Kind::dropout) {
            // A draw for each element of the full network; the step takes as many as elements survive.
            std::vector<float>& draw = batch.draws.emplace_back();
            for (int i = 0; i < batch.images * plan.shape(index + 1).channels * plan.shape(index + 1).pixels(); ++i) {
                draw.push_back(static_cast<float>(random.unit()));
            }
        }
    }
    return batch;
}

// The tensors of a network: for every operation weight, bias and their momentum, then running mean and variance.
using Numbers = std::vector<std::vector<std::vector<double>>>;

Numbers random_numbers(const Plan& plan, Random& random) {
    Numbers numbers;
    for (const Operation& operation : plan.operations()) {
        auto& tensors = numbers.emplace_back(6);
        if (!operation.has_weights()) {
            continue;
        }
        const bool normalises = operation.kind == Kind::batch_norm;
        const int out = operation.shape.channels;
        const int in = normalises ? 1 : plan.shape(operation.inputs[0]).channels / operation.groups;
        const int fan_in = normalises ? 1 : in * operation.window.taps();
        const auto fill = [&](std::vector<double>& tensor, int count, double middle, double reach) {
            for (int i = 0; i < count; ++i) {
                tensor.push_back(double(float(middle + reach * (2 * random.unit() - 1))));
            }
        };
        fill(tensors[0], out * fan_in, normalises ? 1.0 : 0.0, normalises ? 0.2 : std::sqrt(3.0 / fan_in));
        fill(tensors[1], out, 0.0, 0.2);
        fill(tensors[2], out * fan_in, 0.0, 0.0);
        fill(tensors[3], out, 0.0, 0.0);
        fill(tensors[4], out, 0.0, 0.2);
        fill(tensors[5], out, 1.0, 0.2);
    }
    return numbers;
}

// An executor with tensors of its own.
template <class Real>
class Trained {
  public:
    Trained(const std::shared_ptr<const Plan>& plan, const Kernels<Real>& kernels, const Numbers& numbers)
        : values_(copied(numbers)),
          executor_(std::make_shared<const Lowering>(plan), kernels, tensors_of(*plan, values_)) {}

    void step(const MiniBatch& batch) {
        const Plan& plan = executor_.plan();
        std::vector<const float*> draws;
        for (const auto& draw : batch.draws) {
            draws.push_back(draw.data());
        }
        const std::span<const bool> kept(batch.kept.get(), static_cast<std::size_t>(plan.filter_count()) + 1);
        losses_.push_back(
            executor_.step(batch.as_images(), batch.labels.data(), kept, draws, {0.05, 0.9, 5e-4}, batch.threads));
    }

    // Losses, weights, momentum, and the scores of a mini-batch's images.
    std::vector<double> outcome(const MiniBatch& batch) {
        std::vector<double> all = losses_;
        for (const auto& tensors : values_) {
            for (const auto& tensor : tensors) {
                all.insert(all.end(), tensor.begin(), tensor.end());
            }
        }
        const Shape& out = executor_.plan().shape(executor_.plan().output());
        std::vector<Real> scores(static_cast<std::size_t>(batch.images * out.channels));
        Images images = batch.as_images();
        images.corners = nullptr;
        images.flips = nullptr;
        executor_.predict(images, scores.data(), batch.threads);
        all.insert(all.end(), scores.begin(), scores.end());
        return all;
    }

  private:
    using Values = std::vector<std::vector<std::vector<Real>>>;

    static Values copied(const Numbers& numbers) {
        Values values;
        for (const auto& tensors : numbers) {
            auto& copies = values.emplace_back();
            for (const auto& tensor : tensors) {
                auto& copy = copies.emplace_back();
                std::ranges::transform(tensor, std::back_inserter(copy),
                                       [](double number) { return static_cast<Real>(number); });
            }
        }
        return values;
    }

    static std::vector<Tensors<Real>> tensors_of(const Plan& plan, Values& values) {
        std::vector<Tensors<Real>> made(values.size());
        for (std::size_t index = 0; index < values.size(); ++index) {
            const Operation& operation = plan.operation(static_cast<int>(index));
            auto& of_operation = values[index];
            if (operation.has_weights()) {
                const bool biased = operation.bias || operation.kind == Kind::batch_norm;
                made[index] = {of_operation[0].data(), biased ? of_operation[1].data() : nullptr,
                               of_operation[4].data(), of_operation[5].data(),
                               of_operation[2].data(), biased ? of_operation[3].data() : nullptr};
            }
        }
        return made;
    }

    Values values_;
    Executor<Real> executor_;
    std::vector<double> losses_;
};

template <class Real>
std::vector<double> train(const std::shared_ptr<const Plan>& plan, const Kernels<Real>& kernels, const Numbers& numbers,
                          const std::vector<MiniBatch>& batches) {
    Trained<Real> trained(plan, kernels, numbers);
    for (const MiniBatch& batch : batches) {
        trained.step(batch);
    }
    return trained.outcome(batches.back());
}

double largest_difference(const std::vector<double>& found, const std::vector<double>& expected) {
    double largest = found.size() == expected.size() ? 0.0 : HUGE_VAL;
    for (std::size_t i = 0; i < found.size() && i < expected.size(); ++i) {
        const double difference = std::abs(found[i] - expected[i]) / std::max(1.0, std::abs(expected[i]));
        largest = difference <= largest ? largest : difference;  // so that NaN stays
    }
    return largest;
}

// What a network came to.
struct Verdict {
    double difference;  // from exact numbers
    bool same;          // bits when repeated
    std::vector<double> losses;

    bool good() const { return difference <= bound && same; }
};

Verdict try_network(int number, int attempt, const Kernels<float>& kernels) {
    Random random(static_cast<std::uint64_t>(number) * 0x9e3779b97f4a7c15U + 1);
    const std::shared_ptr<const Plan> plan = RandomNetwork(random).make(random.between(2, 5));
    const Numbers numbers = random_numbers(*plan, random);
    Random of_attempt(random.next() + static_cast<std::uint64_t>(attempt));
    std::vector<MiniBatch> batches;
    for (int step = 0; step < steps; ++step) {
        batches.push_back(random_batch(*plan, of_attempt));
    }
    const std::vector<double> exact = train(plan, plain_kernels<double>(), numbers, batches);
    const std::vector<double> found = train(plan, kernels, numbers, batches);
    return {largest_difference(found, exact),
            found == train(plan, kernels, numbers, batches),
            {found.begin(), found.begin() + steps}};
}

// One element in millions lies so near the corner of its activation that rounding puts it on the other side, and then
// its whole gradient differs. With other images that does not happen to the same network again; a fault does.
bool hold_network(int number, const Kernels<float>& kernels) {
    Verdict verdict = try_network(number, 0, kernels);
    if (!verdict.good()) {
        std::printf("network %d: %s differs by %.2g%s\n", number, kernels.name, verdict.difference,
                    verdict.same ? "" : ", and by some bits from itself");
        if (verdict.same) {
            verdict = try_network(number, 1, kernels);
        }
    }
    std::printf("network %d: %s %s; differs by %.2g; losses", number, kernels.name,
                verdict.good() ? "passed" : "FAILED", verdict.difference);
    for (const double loss : verdict.losses) {
        std::printf(" %.5f", loss);
    }
    std::printf("\n");
    return verdict.good();
}

int try_networks(int cases, int first) {
    int failures = 0;
    for (const InstructionSet set : available_instruction_sets(cpu_features())) {
        for (int number = first; number < first + cases; ++number) {
            failures += hold_network(number, kernels_of(set)) ? 0 : 1;
        }
    }
    return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace distreal::stepped

int main(int count, char** arguments) {
    const int cases = count > 1 ? std::atoi(arguments[1]) : 10;
    const int first = count > 2 ? std::atoi(arguments[2]) : 0;
    return distreal::stepped::try_networks(cases, first);
}
