// ThreadPool, for the thread sanitizer and the address sanitizer.

#include "threads.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

namespace distreal::pieces {
namespace {

using std::chrono::milliseconds;

double processor_seconds() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Two units that can only finish together: one on the caller, and one on a worker, which does `on_worker` then.
template <class OnWorker>
void run_on_a_worker(ThreadPool& pool, const OnWorker& on_worker) {
    std::atomic<int> arrived{0};
    pool.run(2, 2, [&](int, int thread) {
        ++arrived;
        while (arrived < 2) {
            std::this_thread::sleep_for(milliseconds(1));
        }
        if (thread != 0) {
            on_worker();
        }
    });
}

void every_unit_runs_once() {
    ThreadPool pool;
    for (const int threads : {1, 2, 5, 3, 1, 4}) {
        for (const int units : {0, 1, 2, 3, 7, 100, 1000}) {
            std::vector<int> runs(static_cast<std::size_t>(units));  // plain: each belongs to one thread
            std::atomic<int> bad_threads{0};
            pool.run(units, threads, [&](int unit, int thread) {
                ++runs[static_cast<std::size_t>(unit)];
                bad_threads += thread < 0 || thread >= threads ? 1 : 0;
            });
            EXPECT(std::ranges::all_of(runs, [](int count) { return count == 1; }));
            EXPECT(bad_threads == 0);
        }
    }
}

void a_thread_keeps_its_number() {
    ThreadPool pool;
    std::array<std::set<std::thread::id>, 3> ids;  // each set belongs to the thread of its number
    for (int region = 0; region < 200; ++region) {
        pool.run(16, 3,
                 [&](int, int thread) { ids[static_cast<std::size_t>(thread)].insert(std::this_thread::get_id()); });
    }
    EXPECT(ids[0].size() == 1 && *ids[0].begin() == std::this_thread::get_id());
    EXPECT(ids[1].size() <= 1 && ids[2].size() <= 1);
}

void one_thread_or_one_unit_stays_with_the_caller() {
    ThreadPool pool;
    std::set<std::thread::id> ids;
    pool.run(100, 1, [&](int, int) { ids.insert(std::this_thread::get_id()); });
    pool.run(1, 100, [&](int, int) { ids.insert(std::this_thread::get_id()); });
    EXPECT(ids.size() == 1 && *ids.begin() == std::this_thread::get_id());
}

void units_run_at_the_same_time() {
    ThreadPool pool;
    bool reached = false;
    run_on_a_worker(pool, [&] { reached = true; });
    EXPECT(reached);
}

void short_regions_lose_nothing() {
    ThreadPool pool;
    constexpr int regions = 20000;
    std::vector<long> sums(8);
    for (int region = 0; region < regions; ++region) {
        pool.run(8, 1 + region % 4, [&](int unit, int) { sums[static_cast<std::size_t>(unit)] += region; });
    }
    EXPECT(std::ranges::all_of(sums, [](long sum) { return sum == long{regions} * (regions - 1) / 2; }));
}

void an_exception_comes_out_after_all_units() {
    ThreadPool pool;
    for (const int threads : {1, 3}) {
        for (int attempt = 0; attempt < 50; ++attempt) {
            std::atomic<int> others{0};
            std::string message;
            try {
                pool.run(40, threads, [&](int unit, int) {
                    if (unit % 10 == 3) {
                        throw std::runtime_error("unit went wrong");
                    }
                    ++others;
                });
            } catch (const std::runtime_error& error) {
                message = error.what();
            }
            EXPECT(message == "unit went wrong");
            EXPECT(others == 36);
            pool.run(4, threads, [](int, int) {});  // throws nothing old
        }
    }
}

void pools_do_not_disturb_each_other() {
    const auto use = [](long* total) {
        ThreadPool pool;
        std::array<long, 4> sums{};
        for (int region = 0; region < 2000; ++region) {
            pool.run(4, 3, [&](int unit, int) { sums[static_cast<std::size_t>(unit)] += region; });
        }
        *total = sums[0] + sums[1] + sums[2] + sums[3];
    };
    long one = 0;
    long other = 0;
    std::thread first(use, &one);
    std::thread second(use, &other);
    first.join();
    second.join();
    EXPECT(one == 4L * 1999 * 1000 && other == one);
}

void idle_workers_cost_no_processor() {
    ThreadPool pool;
    pool.run(100, 4, [](int, int) {});
    std::this_thread::sleep_for(milliseconds(50));
    const double before = processor_seconds();
    std::this_thread::sleep_for(milliseconds(400));
    EXPECT(processor_seconds() - before < 0.1);
}

void a_waiting_caller_costs_no_processor() {
    ThreadPool pool;
    const double before = processor_seconds();
    run_on_a_worker(pool, [] { std::this_thread::sleep_for(milliseconds(400)); });
    EXPECT(processor_seconds() - before < 0.2);
}

void workers_leave_signals_to_the_caller() {
    ThreadPool pool;
    sigset_t before;
    sigset_t on_worker;
    sigset_t after;
    pthread_sigmask(SIG_SETMASK, nullptr, &before);
    run_on_a_worker(pool, [&] { pthread_sigmask(SIG_SETMASK, nullptr, &on_worker); });
    pthread_sigmask(SIG_SETMASK, nullptr, &after);
    for (const int signal : {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGUSR1}) {
        EXPECT(sigismember(&on_worker, signal) == 1);
        EXPECT(sigismember(&before, signal) == 0 && sigismember(&after, signal) == 0);
    }
    EXPECT(sigismember(&on_worker, SIGSEGV) == 0);
}

#ifdef __GLIBC__
// No thread has room for such a stack.
void threads_that_the_system_refuses_are_done_without() {
    pthread_attr_t usual;
    pthread_attr_t impossible;
    pthread_getattr_default_np(&usual);
    pthread_attr_init(&impossible);
    EXPECT(pthread_attr_setstacksize(&impossible, std::size_t{1} << 50) == 0);
    EXPECT(pthread_setattr_default_np(&impossible) == 0);
    ThreadPool pool;
    std::atomic<int> units{0};
    std::atomic<int> elsewhere{0};
    for (int region = 0; region < 100; ++region) {
        pool.run(10, 3, [&](int, int thread) {
            ++units;
            elsewhere += thread != 0 ? 1 : 0;
        });
    }
    pthread_setattr_default_np(&usual);
    pthread_attr_destroy(&impossible);
    pthread_attr_destroy(&usual);
    EXPECT(units == 1000 && elsewhere == 0);

    for (int region = 0; region < 1100; ++region) {  // they are asked for again, now and then
        pool.run(10, 3, [&](int, int) {});
    }
    bool reached = false;
    run_on_a_worker(pool, [&] { reached = true; });
    EXPECT(reached);
}
#endif

#ifndef __SANITIZE_THREAD__  // which lets no forked child of several threads make new ones
template <class InChild>
int status_of_child(const InChild& in_child) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        in_child();
        _exit(7);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void a_forked_child_can_destroy_a_pool() {
    auto pool = std::make_unique<ThreadPool>();
    pool->run(10, 3, [](int, int) {});
    EXPECT(status_of_child([&] { pool.reset(); }) == 7);
    pool->run(10, 3, [](int, int) {});
}

void a_forked_child_can_use_a_pool() {
    ThreadPool pool;
    pool.run(10, 3, [](int, int) {});
    const auto in_child = [&] {
        bool reached = false;
        run_on_a_worker(pool, [&] { reached = true; });
        _exit(reached ? 8 : 9);
    };
    EXPECT(status_of_child(in_child) == 8);
}

void a_child_forked_in_the_middle_of_a_region_can_use_the_pool() {
    ThreadPool pool;
    std::atomic<int> running{0};
    std::atomic<bool> forked{false};
    std::thread trainer([&] {
        pool.run(2, 2, [&](int, int) {
            ++running;
            while (!forked) {
                std::this_thread::sleep_for(milliseconds(1));
            }
        });
    });
    while (running < 2) {
        std::this_thread::sleep_for(milliseconds(1));
    }
    const auto in_child = [&] {
        bool reached = false;
        run_on_a_worker(pool, [&] { reached = true; });
        _exit(reached ? 8 : 9);
    };
    const int status = status_of_child(in_child);
    forked = true;
    trainer.join();
    EXPECT(status == 8);
}
#endif

constexpr Case cases[] = {
    {"every unit runs once", every_unit_runs_once},
    {"a thread keeps its number", a_thread_keeps_its_number},
    {"one thread or one unit stays with the caller", one_thread_or_one_unit_stays_with_the_caller},
    {"units run at the same time", units_run_at_the_same_time},
    {"short regions lose nothing", short_regions_lose_nothing},
    {"an exception comes out after all units", an_exception_comes_out_after_all_units},
    {"pools do not disturb each other", pools_do_not_disturb_each_other},
    {"idle workers cost no processor", idle_workers_cost_no_processor},
    {"a waiting caller costs no processor", a_waiting_caller_costs_no_processor},
    {"workers leave signals to the caller", workers_leave_signals_to_the_caller},
#ifdef __GLIBC__
    {"threads that the system refuses are done without", threads_that_the_system_refuses_are_done_without},
#endif
#ifndef __SANITIZE_THREAD__
    {"a forked child can destroy a pool", a_forked_child_can_destroy_a_pool},
    {"a forked child can use a pool", a_forked_child_can_use_a_pool},
    {"a child forked in the middle of a region can use the pool",
     a_child_forked_in_the_middle_of_a_region_can_use_the_pool},
#endif
};

}  // namespace
}  // namespace distreal::pieces

int main() { return distreal::pieces::run_cases(distreal::pieces::cases); }
