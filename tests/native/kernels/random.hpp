#pragma once
// Random numbers that are the same with every compiler and library, so that a failing case can be run again anywhere.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <numeric>
#include <utility>
#include <vector>

namespace distreal::held {

// How numbers are drawn. Sums of products of small whole numbers are exact in floats whatever the order.
enum class Grain { whole, rounded };

class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {  // splitmix64
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
        z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
        return z ^ (z >> 31U);
    }

    int between(int low, int high) {
        return low + static_cast<int>(next() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool chance(double probability) { return unit() < probability; }
    double unit() { return static_cast<double>(next() >> 11U) * 0x1p-53; }

    template <class T>
    T pick(std::initializer_list<T> of) {
        return of.begin()[between(0, static_cast<int>(of.size()) - 1)];
    }

    // All are exact in floats.
    double number(Grain grain) {
        return grain == Grain::whole ? double(between(-4, 4)) : double(float(2 * unit() - 1));
    }
    double eighths(int limit) { return between(-8 * limit, 8 * limit) / 8.0; }

    std::vector<double> numbers(int count, Grain grain) {
        std::vector<double> drawn(static_cast<std::size_t>(count));
        for (double& of_drawn : drawn) {
            of_drawn = number(grain);
        }
        return drawn;
    }

    std::vector<int> shuffled(int count) {
        std::vector<int> order(static_cast<std::size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        for (int i = count - 1; i > 0; --i) {
            std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(between(0, i))]);
        }
        return order;
    }

    // `count` of 0..of-1 in order: side by side or scattered.
    std::vector<std::int32_t> survivors(int count, int of) {
        std::vector<std::int32_t> chosen;
        const int first = between(0, of - count);
        const bool side_by_side = chance(0.5);
        for (int i = 0, left = count; i < of && left > 0; ++i) {
            if (side_by_side ? i >= first : between(1, of - i) <= left) {
                chosen.push_back(i);
                --left;
            }
        }
        return chosen;
    }

  private:
    std::uint64_t state_;
};

}  // namespace distreal::held
