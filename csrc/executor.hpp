#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "cancellation.hpp"
#include "kernels/kernels.hpp"
#include "lowering.hpp"
#include "pass.hpp"
#include "program.hpp"
#include "survivors.hpp"
#include "threads.hpp"

namespace distreal {

// Trains and evaluates one network. Used by one thread at a time; several executors share nothing.
template <class Real>
class Executor {
  public:
    // `tensors`: one entry for each operation of the plan; what they point to must outlive the executor.
    Executor(std::shared_ptr<const Lowering> lowering, const Kernels<Real>& kernels,
             std::vector<Tensors<Real>> tensors);

    // Each throws std::bad_alloc when there is no memory, and Cancelled soon after it is asked to end; neither weights
    // nor momentum have changed then.

    // Train the survivors on one mini-batch; return its mean loss before the update.
    double step(const Images& images, const std::int64_t* labels, std::span<const bool> kept,
                std::span<const float* const> draws, const Optimiser& optimiser, int threads,
                const Cancellation& cancellation);
    // The full network's class scores, [N][classes], by running statistics.
    void predict(const Images& images, Real* scores, int threads, const Cancellation& cancellation);
    // Mean and biased variance per channel of what every batch norm of the full network sees, in plan order.
    std::vector<std::pair<std::vector<double>, std::vector<double>>> batch_moments(const Images& images, int threads,
                                                                                   const Cancellation& cancellation);

    const Kernels<Real>& kernels() const { return kernels_; }
    const Plan& plan() const { return lowering_->plan(); }
    std::size_t arena_bytes() const { return arena_.bytes(); }

  private:
    // The program for these numbers of survivors, made or found; the arena is large enough for it afterwards.
    const Program<Real>& program_for(const Survivors& survivors, const Circumstances& circumstances);
    Pass<Real> pass_for(const Survivors& survivors, const Circumstances& circumstances,
                        const Cancellation& cancellation);

    struct Known {
        std::vector<std::int32_t> counts;
        Program<Real> program;
    };

    std::shared_ptr<const Lowering> lowering_;
    const Kernels<Real>& kernels_;
    std::vector<Tensors<Real>> tensors_;
    Arena arena_;
    ThreadPool pool_;
    PassScratch<Real> scratch_;
    std::list<Known> known_;  // most recently used first
    std::vector<std::int32_t> counts_;
};

// How many bytes the arena of a training step has.
std::size_t step_bytes(const Lowering& lowering, const Kernels<float>& kernels, std::span<const bool> kept, int images);

}  // namespace distreal
