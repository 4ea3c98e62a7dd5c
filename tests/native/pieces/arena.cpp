// Arena, for the address sanitizer.

#include "arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "check.hpp"

namespace distreal::pieces {
namespace {

constexpr std::size_t megabyte = std::size_t{1} << 20;

std::size_t resident_bytes(const Arena& arena) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    std::vector<unsigned char> pages((arena.bytes() + page - 1) / page);
    if (mincore(arena.data(), arena.bytes(), pages.data()) != 0) {
        return std::numeric_limits<std::size_t>::max();
    }
    return page * static_cast<std::size_t>(std::ranges::count_if(pages, [](unsigned char flags) { return flags & 1; }));
}

bool refuses(Arena& arena, std::size_t bytes) {
    try {
        arena.grow(bytes);
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

void nothing_is_held_before_it_is_asked_for() {
    Arena arena;
    EXPECT(arena.bytes() == 0 && arena.data() == nullptr);
    arena.grow(0);
    arena.release_above(0);
    EXPECT(arena.bytes() == 0 && arena.data() == nullptr);
}

void all_of_it_can_be_written_and_is_aligned() {
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{4097}, 5 * megabyte + 3}) {
        Arena arena(bytes);
        EXPECT(arena.bytes() == bytes);
        EXPECT(reinterpret_cast<std::uintptr_t>(arena.data()) % 4096 == 0);
        EXPECT(std::all_of(arena.data(), arena.data() + bytes, [](std::byte value) { return value == std::byte{0}; }));
        std::memset(arena.data(), 7, bytes);
    }
}

void it_grows_but_never_shrinks() {
    Arena arena(megabyte);
    std::byte* data = arena.data();
    data[0] = std::byte{5};
    arena.grow(megabyte / 2);
    EXPECT(arena.bytes() == megabyte && arena.data() == data && data[0] == std::byte{5});
    arena.grow(9 * megabyte);
    EXPECT(arena.bytes() == 9 * megabyte);
    std::memset(arena.data(), 1, 9 * megabyte);
}

void memory_comes_when_it_is_written() {
    Arena arena(64 * megabyte);
    EXPECT(resident_bytes(arena) == 0);
    std::memset(arena.data(), 1, 3 * megabyte);
    EXPECT(resident_bytes(arena) >= 3 * megabyte && resident_bytes(arena) <= 6 * megabyte);
}

void memory_above_a_mark_goes_back() {
    Arena arena(16 * megabyte);
    std::memset(arena.data(), 1, 16 * megabyte);
    arena.release_above(2 * megabyte + 1);
    EXPECT(resident_bytes(arena) >= 2 * megabyte && resident_bytes(arena) <= 2 * megabyte + 65536);
    EXPECT(arena.data()[2 * megabyte] == std::byte{1});
    EXPECT(arena.data()[3 * megabyte] == std::byte{0});
    arena.release_above(100 * megabyte);
    EXPECT(arena.bytes() == 16 * megabyte);
    arena.release_above(0);
    EXPECT(resident_bytes(arena) == 0);
    std::memset(arena.data(), 1, 16 * megabyte);
}

void what_cannot_be_had_is_refused() {
    Arena arena(megabyte);
    EXPECT(refuses(arena, std::numeric_limits<std::size_t>::max()));
    EXPECT(arena.bytes() == 0 || arena.data() != nullptr);
    EXPECT(refuses(arena, std::size_t{1} << 62));
    EXPECT(arena.bytes() == 0 && arena.data() == nullptr);
    arena.grow(megabyte);
    std::memset(arena.data(), 1, megabyte);
}

void a_moved_arena_takes_its_memory_along() {
    Arena one(megabyte);
    one.data()[5] = std::byte{9};
    std::byte* data = one.data();
    Arena other(std::move(one));
    EXPECT(one.data() == nullptr && one.bytes() == 0);  // NOLINT(bugprone-use-after-move)
    EXPECT(other.data() == data && other.bytes() == megabyte && data[5] == std::byte{9});
    Arena third(2 * megabyte);
    third = std::move(other);
    EXPECT(third.data() == data && third.bytes() == megabyte && other.data() == nullptr);
}

constexpr Case cases[] = {
    {"nothing is held before it is asked for", nothing_is_held_before_it_is_asked_for},
    {"all of it can be written and is aligned", all_of_it_can_be_written_and_is_aligned},
    {"it grows but never shrinks", it_grows_but_never_shrinks},
    {"memory comes when it is written", memory_comes_when_it_is_written},
    {"memory above a mark goes back", memory_above_a_mark_goes_back},
    {"what cannot be had is refused", what_cannot_be_had_is_refused},
    {"a moved arena takes its memory along", a_moved_arena_takes_its_memory_along},
};

}  // namespace
}  // namespace distreal::pieces

int main() { return distreal::pieces::run_cases(distreal::pieces::cases); }
