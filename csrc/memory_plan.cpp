#include "memory_plan.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

namespace distreal {
namespace {

// Buffers that stand one upon the other begin at different places of a page, or passes over several of them at once
// would all fall into the same few sets of the cache. An odd number of lines visits every line of a page.
constexpr std::size_t stagger = 5 * buffer_alignment;
constexpr std::size_t smallest_staggered = std::size_t{64} << 10;
constexpr std::size_t most_for_stagger = 100;  // a hundredth of the memory

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
        if (block.first <= buffer.last && buffer.first <= block.last) {
            offset = std::max(offset, block.end);
        }
    }
    return offset;
}

Placement place_in_order(std::span<const Buffer> buffers, std::span<const std::size_t> order, bool staggered) {
    Placement placement{std::vector<std::size_t>(buffers.size()), 0};
    std::vector<Block> blocks;
    blocks.reserve(buffers.size());
    for (const std::size_t i : order) {
        const Buffer& buffer = buffers[i];
        const std::size_t room = room_of(buffer, staggered);
        if (room == 0) {
            continue;
        }
        const std::size_t offset = lowest_gap(blocks, buffer, room);
        const Block block{offset, offset + room, buffer.first, buffer.last};
        const auto behind = std::ranges::upper_bound(blocks, offset, {}, &Block::offset);
        blocks.insert(behind, block);
        placement.offsets[i] = offset;
        placement.bytes = std::max(placement.bytes, block.end);
    }
    return placement;
}

std::vector<std::size_t> largest_first(std::span<const Buffer> buffers) {
    std::vector<std::size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
        return std::pair(buffers[b].bytes, buffers[a].first) < std::pair(buffers[a].bytes, buffers[b].first);
    });
    return order;
}

std::vector<std::size_t> earliest_first(std::span<const Buffer> buffers) {
    std::vector<std::size_t> order = largest_first(buffers);
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return buffers[i].first; });
    return order;
}

}  // namespace

Placement place_buffers(std::span<const Buffer> buffers) {
    std::vector<std::size_t> order = largest_first(buffers);
    Placement best = place_in_order(buffers, order, false);
    std::vector<std::size_t> other_order = earliest_first(buffers);
    Placement other = place_in_order(buffers, other_order, false);
    if (other.bytes < best.bytes) {
        std::swap(best, other);
        std::swap(order, other_order);
    }
    Placement staggered = place_in_order(buffers, order, true);
    return staggered.bytes <= best.bytes + best.bytes / most_for_stagger ? staggered : best;
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
