#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

namespace distreal {

// What can be called as work(unit, thread). It refers to the callable, which must outlive it, and never allocates.
class WorkRef {
  public:
    template <class Work>
    WorkRef(const Work& work)  // NOLINT(google-explicit-constructor): lambdas are handed in as they are
        : work_(&work),
          call_([](const void* object, int unit, int thread) { (*static_cast<const Work*>(object))(unit, thread); }) {}

    void operator()(int unit, int thread) const { call_(work_, unit, thread); }

  private:
    const void* work_;
    void (*call_)(const void*, int, int);
};

// Threads that share the units of one task after another. They are made when first needed, wait for the next task by
// spinning for some tens of microseconds and then asleep, and end with the pool.
//
// One thread at a time may use a pool, and no unit may use the pool that runs it. A forked child may go on with a
// pool, or destroy it: the threads that it does not have are made anew, or not waited for.
class ThreadPool {
  public:
    ThreadPool();
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Calls work(unit, thread) once for every unit in 0..units-1, with thread in 0..threads-1: the caller is thread 0.
    // Which thread takes which unit is open, and a thread that gets no processor in time takes none: nobody waits for
    // it. Where the system allows no further thread, fewer do the work. When units throw, the others still run, and
    // then one of the exceptions is thrown here.
    void run(int units, int threads, WorkRef work);

  private:
    struct Worker;

    void adopt_by_this_process();
    int ready_workers(int wanted);
    bool add_worker();
    void begin_region(int units, const WorkRef& work);
    int take_units(std::uint32_t region, int thread);
    void call(const WorkRef& work, int unit, int thread);
    void wait_for_workers(int units);
    void serve(Worker& worker);

    // On cache lines of their own: what everybody writes, what everybody waits for, and what is rarely written.
    alignas(64) std::atomic<std::uint64_t> tickets_{0};   // region << 32 | units that nobody has taken yet
    alignas(64) std::atomic<std::uint32_t> finished_{0};  // units that workers have finished in this region
    alignas(64) const WorkRef* work_ = nullptr;
    int units_ = 0;
    std::uint32_t region_;
    std::atomic<bool> failed_{false};
    std::exception_ptr failure_;
    std::vector<std::unique_ptr<Worker>> workers_;
    std::uint32_t refused_in_region_ = 0;  // when the system last refused a thread; 0: never
    pid_t process_;
};

}  // namespace distreal
