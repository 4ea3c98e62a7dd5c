#pragma once
// Executors with tensors of their own, and random mini-batches to train them with.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <vector>

#include "cancellation.hpp"
#include "executor.hpp"
#include "random.hpp"

namespace distreal::stepped {

using held::Random;

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
inline std::unique_ptr<bool[]> random_kept(const Plan& plan, Random& random) {
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

inline MiniBatch random_batch(const Plan& plan, Random& random) {
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

inline Numbers random_numbers(const Plan& plan, Random& random) {
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
    using Values = std::vector<std::vector<std::vector<Real>>>;

    Trained(const std::shared_ptr<const Plan>& plan, const Kernels<Real>& kernels, const Numbers& numbers)
        : values_(copied(numbers)),
          executor_(std::make_shared<const Lowering>(plan), kernels, tensors_of(*plan, values_)) {}

    // Throws Cancelled as an executor does.
    void step(const MiniBatch& batch, const Cancellation& cancellation = {}) {
        const Plan& plan = executor_.plan();
        std::vector<const float*> draws;
        for (const auto& draw : batch.draws) {
            draws.push_back(draw.data());
        }
        const std::span<const bool> kept(batch.kept.get(), static_cast<std::size_t>(plan.filter_count()) + 1);
        losses_.push_back(executor_.step(batch.as_images(), batch.labels.data(), kept, draws, {0.05, 0.9, 5e-4},
                                         batch.threads, cancellation));
    }

    std::vector<Real> predict(const MiniBatch& batch, const Cancellation& cancellation = {}) {
        const Shape& out = executor_.plan().shape(executor_.plan().output());
        std::vector<Real> scores(static_cast<std::size_t>(batch.images * out.channels));
        Images images = batch.as_images();
        images.corners = nullptr;
        images.flips = nullptr;
        executor_.predict(images, scores.data(), batch.threads, cancellation);
        return scores;
    }

    // Weights, statistics and momentum.
    const Values& values() const { return values_; }

    // Losses, weights, momentum, and the scores of a mini-batch's images.
    std::vector<double> outcome(const MiniBatch& batch) {
        std::vector<double> all = losses_;
        for (const auto& tensors : values_) {
            for (const auto& tensor : tensors) {
                all.insert(all.end(), tensor.begin(), tensor.end());
            }
        }
        const std::vector<Real> scores = predict(batch);
        all.insert(all.end(), scores.begin(), scores.end());
        return all;
    }

  private:
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

}  // namespace distreal::stepped
