// The placement of buffers, against brute force.

#include "memory_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "check.hpp"

namespace distreal::pieces {
namespace {

constexpr std::size_t kilobyte = 1024;

bool live_together(const Buffer& a, const Buffer& b) { return a.first <= b.last && b.first <= a.last; }

// Every pair, and every bound.
bool is_valid(const std::vector<Buffer>& buffers, const Placement& placement) {
    if (placement.offsets.size() != buffers.size()) {
        return false;
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        const std::size_t begin = placement.offsets[i];
        const std::size_t end = begin + buffers[i].bytes;
        if (begin % 64 != 0 || end > placement.bytes) {
            return false;
        }
        for (std::size_t j = 0; j < i; ++j) {
            const std::size_t other = placement.offsets[j];
            if (live_together(buffers[i], buffers[j]) && begin < other + buffers[j].bytes && other < end) {
                return false;
            }
        }
    }
    return true;
}

std::size_t brute_force_most_live(const std::vector<Buffer>& buffers) {
    std::size_t most = 0;
    for (const Buffer& moment : buffers) {  // the most live when some buffer begins
        std::size_t live = 0;
        for (const Buffer& buffer : buffers) {
            live += buffer.first <= moment.first && moment.first <= buffer.last ? (buffer.bytes + 63) / 64 * 64 : 0;
        }
        most = std::max(most, live);
    }
    return most;
}

std::vector<Buffer> random_buffers(std::mt19937& random, int count, std::size_t largest) {
    std::vector<Buffer> buffers;
    std::uniform_int_distribution<int> steps(0, 60);
    std::uniform_int_distribution<std::size_t> bytes(0, largest);
    for (int i = 0; i < count; ++i) {
        const int one = steps(random);
        const int other = steps(random);
        buffers.push_back({bytes(random), std::min(one, other), std::max(one, other)});
    }
    return buffers;
}

// As a training step uses memory: values live until their gradients are made, which live for a short while.
std::vector<Buffer> buffers_of_a_step(std::mt19937& random, int layers) {
    std::vector<Buffer> buffers;
    std::uniform_int_distribution<int> survivors(3, 64);
    std::size_t pixels = 1024;
    const int last = 2 * layers;
    for (int layer = 0; layer < layers; ++layer) {
        pixels = layer == layers / 3 || layer == 2 * layers / 3 ? pixels / 4 : pixels;
        const auto channels = static_cast<std::size_t>(survivors(random));
        const std::size_t bytes = pixels * channels * 32 * 4;
        const int back = last - layer;
        buffers.push_back({bytes, layer, back});                      // a value
        buffers.push_back({bytes, back - 1, back});                   // its gradient
        buffers.push_back({channels * channels * 36, layer, layer});  // packed weights
        buffers.push_back({channels * channels * 36, back, back});    // and their gradient
        buffers.push_back({channels * 8, layer, back});               // statistics
        buffers.push_back({channels * 4 * 16, layer, layer});         // sums
    }
    return buffers;
}

void buffers_that_live_together_never_overlap() {
    std::mt19937 random(1);
    for (int instance = 0; instance < 300; ++instance) {
        const std::size_t largest = instance % 3 == 0 ? 200 : instance % 3 == 1 ? 100 * kilobyte : 3000 * kilobyte;
        const std::vector<Buffer> buffers = random_buffers(random, instance % 90, largest);
        EXPECT(is_valid(buffers, place_buffers(buffers)));
    }
}

void the_bound_is_the_most_that_lives_together() {
    std::mt19937 random(2);
    for (int instance = 0; instance < 200; ++instance) {
        const std::vector<Buffer> buffers = random_buffers(random, instance % 50, 10000);
        EXPECT(most_live_bytes(buffers) == brute_force_most_live(buffers));
        EXPECT(most_live_bytes(buffers) <= place_buffers(buffers).bytes);
    }
}

void the_block_is_little_larger_than_what_lives_together() {
    std::mt19937 random(3);
    double worst = 0.0;
    for (int layers = 5; layers < 100; ++layers) {
        const std::vector<Buffer> buffers = buffers_of_a_step(random, layers);
        const Placement placement = place_buffers(buffers);
        EXPECT(is_valid(buffers, placement));
        const double ratio = static_cast<double>(placement.bytes) / static_cast<double>(most_live_bytes(buffers));
        worst = std::max(worst, ratio);
    }
    std::printf("worst of the training steps: %.3f of the bound\n", worst);
    EXPECT(worst < 1.02);
}

void nothing_needs_nothing() {
    EXPECT(place_buffers({}).bytes == 0 && most_live_bytes({}) == 0);
    const std::vector<Buffer> empty{{0, 0, 5}, {0, 2, 3}};
    EXPECT(place_buffers(empty).bytes == 0);
    EXPECT(is_valid(empty, place_buffers(empty)));
}

void buffers_that_follow_each_other_share_a_place() {
    std::vector<Buffer> buffers;
    for (int step = 0; step < 20; ++step) {
        buffers.push_back({6400, step, step});
    }
    const Placement placement = place_buffers(buffers);
    EXPECT(placement.bytes == 6400);
    EXPECT(std::ranges::all_of(placement.offsets, [](std::size_t offset) { return offset == 0; }));
}

void buffers_that_live_together_stand_side_by_side() {
    const std::vector<Buffer> buffers{{64, 0, 9}, {1, 0, 9}, {100, 0, 9}};
    EXPECT(place_buffers(buffers).bytes == 64 + 64 + 128);
}

void nested_lifetimes_are_placed_exactly() {
    std::vector<Buffer> buffers;
    for (int depth = 0; depth < 30; ++depth) {
        buffers.push_back({static_cast<std::size_t>(64 * (depth * 7 % 11 + 1)), depth, 100 - depth});
    }
    EXPECT(place_buffers(buffers).bytes == most_live_bytes(buffers));
}

// Each of these has a placement without waste, found by one of five orders only: largest first, longest-lived first,
// largest product of both first, as they are used, and longest needed first.
void the_best_of_several_orders_is_taken() {
    const std::vector<std::vector<Buffer>> instances{
        {{192, 2, 4}, {192, 0, 4}, {128, 0, 1}, {64, 0, 2}, {128, 1, 1}},
        {{192, 0, 2}, {256, 4, 4}, {64, 3, 4}, {192, 2, 3}, {128, 3, 3}},
        {{128, 1, 3}, {256, 4, 4}, {192, 1, 4}, {256, 0, 1}, {192, 2, 4}, {192, 2, 3}},
        {{128, 0, 2}, {192, 0, 2}, {128, 4, 4}, {192, 1, 3}, {256, 1, 4}, {256, 3, 3}},
        {{192, 1, 1}, {128, 2, 4}, {256, 0, 2}, {192, 3, 3}, {128, 3, 4}, {256, 2, 4}},
    };
    for (const std::vector<Buffer>& buffers : instances) {
        const Placement placement = place_buffers(buffers);
        EXPECT(is_valid(buffers, placement));
        EXPECT(placement.bytes == most_live_bytes(buffers));
    }
}

void large_buffers_begin_at_different_places_of_a_page() {
    std::vector<Buffer> buffers;
    for (int layer = 0; layer < 40; ++layer) {
        buffers.push_back({512 * kilobyte, layer, 80 - layer});
    }
    const Placement placement = place_buffers(buffers);
    std::set<std::size_t> places;
    for (const std::size_t offset : placement.offsets) {
        places.insert(offset % 4096);
    }
    EXPECT(places.size() == buffers.size());
    EXPECT(placement.bytes <= most_live_bytes(buffers) + most_live_bytes(buffers) / 100);
}

constexpr Case cases[] = {
    {"buffers that live together never overlap", buffers_that_live_together_never_overlap},
    {"the bound is the most that lives together", the_bound_is_the_most_that_lives_together},
    {"the block is little larger than what lives together", the_block_is_little_larger_than_what_lives_together},
    {"nothing needs nothing", nothing_needs_nothing},
    {"buffers that follow each other share a place", buffers_that_follow_each_other_share_a_place},
    {"buffers that live together stand side by side", buffers_that_live_together_stand_side_by_side},
    {"nested lifetimes are placed exactly", nested_lifetimes_are_placed_exactly},
    {"the best of several orders is taken", the_best_of_several_orders_is_taken},
    {"large buffers begin at different places of a page", large_buffers_begin_at_different_places_of_a_page},
};

}  // namespace
}  // namespace distreal::pieces

int main() { return distreal::pieces::run_cases(distreal::pieces::cases); }
