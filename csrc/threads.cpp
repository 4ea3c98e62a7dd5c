#include "threads.hpp"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

namespace distreal {
namespace {

// Numbers of regions; those below are orders to workers.
constexpr std::uint32_t stop = 0;
constexpr std::uint32_t rest = 1;
constexpr std::uint32_t first_region = 2;

// How long one waits awake: longer than the serial parts of a step, shorter than anything an owner would notice.
constexpr auto patience = std::chrono::microseconds(50);
// The pauses between two looks at the clock, which costs more than a pause.
constexpr int pauses = 16;
// More threads than any board has cores are of no use, and a thread that nobody needs still costs memory.
constexpr int most_workers = 255;
// Regions to wait before the system is asked again for a thread that it refused.
constexpr std::uint32_t regions_between_refusals = 1024;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // `yield` does nothing on these cores; this takes about as long as x86's pause
#endif
}

// Returns the value as soon as it is no longer `old`.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < pauses; ++i) {
            const std::uint32_t now = value.load(std::memory_order_acquire);
            if (now != old) {
                return now;
            }
            pause();
        }
    } while (std::chrono::steady_clock::now() - start < patience);
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

// Signals stay with the threads of the interpreter, but for those that say that this very thread went wrong.
sigset_t signals_to_block() {
    sigset_t set;
    sigfillset(&set);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
        sigdelset(&set, fault);
    }
    return set;
}

std::uint64_t tickets_of(std::uint32_t region, int units) {
    return static_cast<std::uint64_t>(region) << 32 | static_cast<std::uint32_t>(units);
}

}  // namespace

struct alignas(64) ThreadPool::Worker {
    std::atomic<std::uint32_t> order{rest};  // the region to help in, or to stop
    ThreadPool* pool;
    int thread;
    pthread_t handle;

    static void* main(void* worker) {
        Worker& self = *static_cast<Worker*>(worker);
        self.pool->serve(self);
        return nullptr;
    }
};

ThreadPool::ThreadPool() : region_(first_region), process_(getpid()) {}

ThreadPool::~ThreadPool() {
    if (getpid() != process_) {
        return;
    }
    for (const auto& worker : workers_) {
        worker->order.store(stop, std::memory_order_release);
        worker->order.notify_one();
    }
    for (const auto& worker : workers_) {
        pthread_join(worker->handle, nullptr);
    }
}

void ThreadPool::run(int units, int threads, WorkRef work) {
    const int wanted = std::min({threads, units, most_workers + 1}) - 1;
    if (wanted <= 0) {
        for (int unit = 0; unit < units; ++unit) {
            call(work, unit, 0);
        }
    } else {
        adopt_by_this_process();
        const int helpers = ready_workers(wanted);
        begin_region(units, work);
        for (int i = 0; i < helpers; ++i) {
            Worker& worker = *workers_[static_cast<std::size_t>(i)];
            worker.order.store(region_, std::memory_order_release);
            worker.order.notify_one();
        }
        const int own = take_units(region_, 0);
        wait_for_workers(units - own);
    }
    if (failure_) {
        failed_.store(false, std::memory_order_relaxed);
        std::rethrow_exception(std::exchange(failure_, nullptr));
    }
}

// In a forked child there are no workers, and the fork may have come in the middle of a region.
void ThreadPool::adopt_by_this_process() {
    const pid_t process = getpid();
    if (process != process_) {
        process_ = process;
        workers_.clear();
        failed_.store(false, std::memory_order_relaxed);
        failure_ = nullptr;
    }
}

int ThreadPool::ready_workers(int wanted) {
    while (static_cast<int>(workers_.size()) < wanted) {
        if (refused_in_region_ != 0 && region_ - refused_in_region_ < regions_between_refusals) {
            break;
        }
        if (!add_worker()) {
            refused_in_region_ = region_;
            break;
        }
        refused_in_region_ = 0;
    }
    return std::min(wanted, static_cast<int>(workers_.size()));
}

bool ThreadPool::add_worker() try {
    auto worker = std::make_unique<Worker>();
    worker->pool = this;
    worker->thread = static_cast<int>(workers_.size()) + 1;
    workers_.reserve(workers_.size() + 1);  // nothing may fail once the thread runs

    const sigset_t blocked = signals_to_block();
    sigset_t before;
    pthread_sigmask(SIG_SETMASK, &blocked, &before);  // a thread starts with the mask of the one that makes it
    const int error = pthread_create(&worker->handle, nullptr, &Worker::main, worker.get());
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) {
        return false;
    }
    workers_.push_back(std::move(worker));
    return true;
} catch (const std::bad_alloc&) {
    return false;
}

// Whoever takes a ticket of the new region also sees what is written here before it.
void ThreadPool::begin_region(int units, const WorkRef& work) {
    region_ = region_ + 1 < first_region ? first_region : region_ + 1;
    work_ = &work;
    units_ = units;
    finished_.store(0, std::memory_order_relaxed);
    tickets_.store(tickets_of(region_, units), std::memory_order_release);
}

// Takes units of one region while there are any, and returns how many it took. A region cannot end before its taken
// units are finished; a thread that comes too late finds other tickets, and touches nothing.
int ThreadPool::take_units(std::uint32_t region, int thread) {
    int taken = 0;
    std::uint64_t tickets = tickets_.load(std::memory_order_acquire);
    while (tickets >> 32 == region && tickets != tickets_of(region, 0)) {
        if (tickets_.compare_exchange_weak(tickets, tickets - 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
            call(*work_, units_ - static_cast<int>(tickets & 0xffffffffU), thread);
            ++taken;
            tickets = tickets_.load(std::memory_order_acquire);
        }
    }
    return taken;
}

void ThreadPool::call(const WorkRef& work, int unit, int thread) try { work(unit, thread); } catch (...) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) {
        failure_ = std::current_exception();
    }
}

void ThreadPool::wait_for_workers(int units) {
    const auto wanted = static_cast<std::uint32_t>(units);
    std::uint32_t finished = finished_.load(std::memory_order_acquire);
    while (finished != wanted) {
        finished = wait_for_change(finished_, finished);
    }
}

void ThreadPool::serve(Worker& worker) {
    std::uint32_t order = rest;
    while ((order = wait_for_change(worker.order, order)) != stop) {
        const int taken = take_units(order, worker.thread);
        if (taken > 0) {
            finished_.fetch_add(static_cast<std::uint32_t>(taken), std::memory_order_acq_rel);
            finished_.notify_one();
        }
    }
}

}  // namespace distreal
