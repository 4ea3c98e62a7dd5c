#pragma once

#include <atomic>
#include <exception>

namespace distreal {

// Asks a step or a pass to end early. Any thread may do so at any time. It cannot be taken back: whoever finds it not
// cancelled knows that nobody before has left anything out.
class Cancellation {
  public:
    void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }
    bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }

  private:
    std::atomic<bool> cancelled_{false};
};

// What a cancelled step or pass throws; neither weights nor momentum have changed.
class Cancelled : public std::exception {
  public:
    const char* what() const noexcept override { return "cancelled"; }
};

}  // namespace distreal
