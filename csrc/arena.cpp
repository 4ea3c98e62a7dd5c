#include "arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <new>
#include <utility>

namespace distreal {
namespace {

std::size_t page_size() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

// Throws std::bad_alloc when the next multiple is no number.
std::size_t whole_pages(std::size_t bytes) {
    const std::size_t page = page_size();
    if (bytes > std::numeric_limits<std::size_t>::max() - page) {
        throw std::bad_alloc();
    }
    return (bytes + page - 1) / page * page;
}

}  // namespace

Arena::~Arena() { release(); }

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
    if (this != &other) {
        release();
        data_ = std::exchange(other.data_, nullptr);
        bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
}

void Arena::grow(std::size_t bytes) {
    if (bytes <= bytes_) {
        return;
    }
    release();  // first, so that old and new are never held together
    void* block =
        mmap(nullptr, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
        throw std::bad_alloc();
    }
    data_ = static_cast<std::byte*>(block);
    bytes_ = bytes;
}

void Arena::release_above(std::size_t bytes) {
    if (bytes >= bytes_) {
        return;
    }
    const std::size_t kept = whole_pages(bytes);
    const std::size_t held = whole_pages(bytes_);
    if (kept < held) {
        madvise(data_ + kept, held - kept, MADV_DONTNEED);
    }
}

void Arena::release() {
    if (data_ != nullptr) {
        munmap(data_, whole_pages(bytes_));
        data_ = nullptr;
        bytes_ = 0;
    }
}

}  // namespace distreal
