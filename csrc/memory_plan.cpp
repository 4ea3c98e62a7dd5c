#include "memory_plan.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <utility>

namespace distreal {
namespace {

// Buffers that stand one upon the other begin at different places of a page, or passes over several of them at once
// would all fall into the same few sets of the cache. An odd number of lines visits every line of a page.
constexpr std::size_t stagger = 5 * buffer_alignment;
constexpr std::size_t smallest_staggered = std::size_t{64} << 10;
constexpr std::size_t most_for_stagger = 100;  // a hundredth of the memory

// Where the largest buffers go decides; the others find room between them.
constexpr std::ptrdiff_t deciding = 100;

struct Block {
    std::size_t offset;
    std::size_t end;
    int first;
    int last;
};

std::size_t room_of(const Buffer& buffer, bool staggered) {
    const std::size_t room = (buffer.bytes + buffer_alignment - 1) / buffer_alignment * buffer_alignment;
    return staggered && room >= smallest_staggered ? room + stagger : room;
}

// The lowest offset with `room` bytes that no block uses in these steps. `blocks` are in the order of their offsets.
std::size_t lowest_gap(const std::vector<Block>& blocks, const Buffer& buffer, std::size_t room) {
    std::size_t offset = 0;
    for (const Block& block : blocks) {
        if (block.offset >= offset + room) {
            break;
        }
        const bool together =
            static_cast<int>(block.first <= buffer.last) & static_cast<int>(buffer.first <= block.last);
        offset = std::max(offset, together ? block.end : 0);
    }
    return offset;
}

using Order = std::vector<std::size_t>;

// A placement in the making.
struct Packing {
    Placement placement;
    std::vector<Block> blocks;  // by offset

    explicit Packing(std::size_t buffers) : placement{std::vector<std::size_t>(buffers), 0} { blocks.reserve(buffers); }
};

void place_in_order(std::span<const Buffer> buffers, std::span<const std::size_t> order, bool staggered,
                    Packing& packing) {
    for (const std::size_t i : order) {
        const Buffer& buffer = buffers[i];
        const std::size_t room = room_of(buffer, staggered);
        if (room == 0) {
            continue;
        }
        const std::size_t offset = lowest_gap(packing.blocks, buffer, room);
        const Block block{offset, offset + room, buffer.first, buffer.last};
        packing.blocks.insert(std::ranges::upper_bound(packing.blocks, offset, {}, &Block::offset), block);
        packing.placement.offsets[i] = offset;
        packing.placement.bytes = std::max(packing.placement.bytes, block.end);
    }
}

Order largest_first(std::span<const Buffer> buffers) {
    Order order(buffers.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
        return std::pair(buffers[b].bytes, buffers[a].first) < std::pair(buffers[a].bytes, buffers[b].first);
    });
    return order;
}

template <class Key>
Order sorted_by(std::span<const std::size_t> order, const Key& key) {
    Order sorted(order.begin(), order.end());
    std::ranges::stable_sort(sorted, {}, key);
    return sorted;
}

// None of these is always the best, and the best is nearly always close to what no placement can undercut.
std::array<Order, 5> promising_orders(std::span<const Buffer> buffers, std::span<const std::size_t> by_size) {
    const auto steps = [&](std::size_t i) { return std::int64_t{buffers[i].last} - buffers[i].first + 1; };
    return {Order(by_size.begin(), by_size.end()), sorted_by(by_size, [&](std::size_t i) { return -steps(i); }),
            sorted_by(
                by_size,
                [&](std::size_t i) { return -static_cast<double>(buffers[i].bytes) * static_cast<double>(steps(i)); }),
            sorted_by(by_size, [&](std::size_t i) { return buffers[i].first; }),
            sorted_by(by_size, [&](std::size_t i) { return -std::int64_t{buffers[i].last}; })};
}

Packing best_packing(std::span<const Buffer> buffers, std::span<const Order> orders, bool staggered) {
    Packing best(buffers.size());
    for (const Order& order : orders) {
        Packing packing(buffers.size());
        place_in_order(buffers, order, staggered, packing);
        if (&order == &orders.front() || packing.placement.bytes < best.placement.bytes) {
            best = std::move(packing);
        }
    }
    return best;
}

}  // namespace

Placement place_buffers(std::span<const Buffer> buffers) {
    const Order by_size = largest_first(buffers);
    const auto rest = by_size.begin() + std::min(deciding, std::ssize(by_size));
    const auto orders = promising_orders(buffers, {by_size.begin(), rest});
    Packing plain = best_packing(buffers, orders, false);
    Packing staggered = best_packing(buffers, orders, true);
    const std::size_t limit = plain.placement.bytes + plain.placement.bytes / most_for_stagger;
    const bool stagger_is_cheap = staggered.placement.bytes <= limit;
    Packing& chosen = stagger_is_cheap ? staggered : plain;
    place_in_order(buffers, {rest, by_size.end()}, stagger_is_cheap, chosen);
    return std::move(chosen.placement);
}

std::size_t most_live_bytes(std::span<const Buffer> buffers) {
    // A buffer's bytes come at its first step, and go behind its last.
    std::vector<std::pair<std::int64_t, std::ptrdiff_t>> changes;
    changes.reserve(2 * buffers.size());
    for (const Buffer& buffer : buffers) {
        const auto room = static_cast<std::ptrdiff_t>(room_of(buffer, false));
        changes.emplace_back(buffer.first, room);
        changes.emplace_back(std::int64_t{buffer.last} + 1, -room);
    }
    std::ranges::sort(changes);
    std::ptrdiff_t live = 0;
    std::ptrdiff_t most = 0;
    for (const auto& [step, change] : changes) {
        live += change;
        most = std::max(most, live);
    }
    return static_cast<std::size_t>(most);
}

}  // namespace distreal
