// Cancels training steps of small random networks at each call of a kernel in turn, and wants weights and momentum as
// they were before, and all that follows as if the cancelled step had never been.
//
//     cancelled CASES [FIRST]     that many networks, from number FIRST on

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cancellation.hpp"
#include "kernels/kernels.hpp"
#include "random.hpp"
#include "random_network.hpp"
#include "trained.hpp"

namespace distreal::stepped {
namespace {

constexpr int never = -1;

// The plain kernels, which count their calls and cancel in one of them. They know no context: there is one of it.
struct Watched {
    std::atomic<int> calls{0};    // before the update
    std::atomic<int> updates{0};  // of a row of weights
    int cancel_in_call = never;
    int cancel_in_update = never;
    std::unique_ptr<Cancellation> cancellation = std::make_unique<Cancellation>();

    void start(int call, int update) {
        calls = 0;
        updates = 0;
        cancel_in_call = call;
        cancel_in_update = update;
        cancellation = std::make_unique<Cancellation>();
    }
    void called() {
        if (calls++ == cancel_in_call) {
            cancellation->cancel();
        }
    }
    void updated() {
        if (updates++ == cancel_in_update) {
            cancellation->cancel();
        }
    }
};
Watched watched;

using Real = float;

template <auto kernel, class Task>
void watch(const Task& task, int unit) {
    watched.called();
    (plain_kernels<Real>().*kernel)(task, unit);
}

Kernels<Real> watched_kernels() {
    using Table = Kernels<Real>;
    Table table = plain_kernels<Real>();
    table.pack = watch<&Table::pack>;
    table.gather = watch<&Table::gather>;
    table.weight_gradient = [](const WeightGradientTask<Real>& task, int unit, Real* scratch) {
        watched.called();
        plain_kernels<Real>().weight_gradient(task, unit, scratch);
    };
    table.depthwise_forward = watch<&Table::depthwise_forward>;
    table.depthwise_backward = watch<&Table::depthwise_backward>;
    table.depthwise_weight = watch<&Table::depthwise_weight>;
    table.moments = watch<&Table::moments>;
    table.activate = watch<&Table::activate>;
    table.activate_backward = watch<&Table::activate_backward>;
    table.normalise_backward = watch<&Table::normalise_backward>;
    table.copy = watch<&Table::copy>;
    table.add = watch<&Table::add>;
    table.multiply = watch<&Table::multiply>;
    table.pool_forward = watch<&Table::pool_forward>;
    table.pool_backward = watch<&Table::pool_backward>;
    table.flatten = watch<&Table::flatten>;
    table.sgd = [](const SgdTask<Real>& task, int unit) {
        watched.updated();
        plain_kernels<Real>().sgd(task, unit);
    };
    return table;
}

void expect(bool holds, const std::string& what) {
    if (!holds) {
        throw std::runtime_error(what);
    }
}

template <class Call>
bool is_cancelled(const Call& call) {
    try {
        call(*watched.cancellation);
        return false;
    } catch (const Cancelled&) {
        return true;
    }
}

struct Trial {
    std::shared_ptr<const Plan> plan;
    Kernels<Real> kernels;
    Numbers numbers;
    std::vector<MiniBatch> batches;  // of two steps

    Trained<Real> fresh() const { return Trained<Real>(plan, kernels, numbers); }
};

Trial make_trial(int number) {
    Random random(static_cast<std::uint64_t>(number) * 0x9e3779b97f4a7c15U + 5);
    Trial trial;
    trial.plan = RandomNetwork(random).make(random.between(2, 5));
    trial.kernels = watched_kernels();
    trial.numbers = random_numbers(*trial.plan, random);
    for (int step = 0; step < 2; ++step) {
        trial.batches.push_back(random_batch(*trial.plan, random));
        trial.batches.back().threads = 1 + step;
    }
    return trial;
}

// How many calls of kernels the step over this mini-batch has before its update, and how many rows it updates.
struct Counted {
    int calls;
    int updates;
};

Counted count(Trained<Real>& trained, const MiniBatch& batch) {
    watched.start(never, never);
    trained.step(batch);
    return {watched.calls, watched.updates};
}

// Returns how many steps were cancelled.
int cancel_in_each_call(const Trial& trial) {
    Trained<Real> undisturbed = trial.fresh();
    Trained<Real> cancelled = trial.fresh();
    int steps = 0;
    for (const MiniBatch& batch : trial.batches) {
        const auto before = undisturbed.values();
        const int calls = count(undisturbed, batch).calls;
        for (int call = 0; call < calls; ++call, ++steps) {
            watched.start(call, never);
            const std::string where = " in call " + std::to_string(call);
            expect(is_cancelled([&](const Cancellation& given) { cancelled.step(batch, given); }), "Cancelled" + where);
            expect(watched.updates == 0 && cancelled.values() == before, "no change when cancelled" + where);
        }
        cancelled.step(batch);
        expect(cancelled.values() == undisturbed.values(), "a step after cancelled ones to be as without them");
    }
    return steps;
}

void cancel_in_the_update(const Trial& trial) {
    Trained<Real> undisturbed = trial.fresh();
    const MiniBatch& batch = trial.batches[0];
    const int updates = count(undisturbed, batch).updates;
    for (int update = 0; update < updates; update += 1 + updates / 5) {
        Trained<Real> late = trial.fresh();
        watched.start(never, update);
        expect(!is_cancelled([&](const Cancellation& given) { late.step(batch, given); }),
               "the update to end the step");
        expect(late.values() == undisturbed.values(), "the whole update, whoever cancels in it");
    }
}

void cancel_a_prediction_in_each_call(const Trial& trial) {
    Trained<Real> trained = trial.fresh();
    watched.start(never, never);
    const std::vector<Real> scores = trained.predict(trial.batches[0]);
    const int calls = watched.calls;
    for (int call = 0; call < calls; ++call) {
        watched.start(call, never);
        expect(is_cancelled([&](const Cancellation& given) { trained.predict(trial.batches[0], given); }),
               "a prediction that was cancelled in call " + std::to_string(call) + " to throw");
    }
    expect(trained.predict(trial.batches[0]) == scores, "a prediction after cancelled ones to be as without them");
}

void cancel_before_the_start(const Trial& trial) {
    Trained<Real> trained = trial.fresh();
    const auto before = trained.values();
    watched.start(never, never);
    watched.cancellation->cancel();
    expect(is_cancelled([&](const Cancellation& given) { trained.step(trial.batches[0], given); }),
           "a step that was cancelled before to throw");
    expect(watched.calls == 0 && trained.values() == before, "a step that was cancelled before to do nothing");
}

bool try_network(int number) try {
    const Trial trial = make_trial(number);
    cancel_before_the_start(trial);
    cancel_a_prediction_in_each_call(trial);
    cancel_in_the_update(trial);
    std::printf("network %d: passed, %d steps cancelled\n", number, cancel_in_each_call(trial));
    return true;
} catch (const std::exception& error) {
    std::printf("network %d: FAILED, expected %s\n", number, error.what());
    return false;
}

}  // namespace
}  // namespace distreal::stepped

int main(int count, char** arguments) {
    const int cases = count > 1 ? std::atoi(arguments[1]) : 10;
    const int first = count > 2 ? std::atoi(arguments[2]) : 0;
    int failures = 0;
    for (int number = first; number < first + cases; ++number) {
        failures += distreal::stepped::try_network(number) ? 0 : 1;
    }
    return failures == 0 ? 0 : 1;
}
