#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace distreal {

// Memory that is needed from step `first` to step `last`, both included.
struct Buffer {
    std::size_t bytes;
    int first;
    int last;
};

struct Placement {
    std::vector<std::size_t> offsets;  // of each buffer, multiples of buffer_alignment
    std::size_t bytes;                 // of the block that holds them all
};

inline constexpr std::size_t buffer_alignment = 64;  // a cache line, and the longest vector

// Places buffers in one block such that those that live at the same time do not overlap. What lives when decides, not
// the order in which buffers are listed, except among equals.
Placement place_buffers(std::span<const Buffer> buffers);

// The most bytes that live at the same time: no placement can need less.
std::size_t most_live_bytes(std::span<const Buffer> buffers);

}  // namespace distreal
