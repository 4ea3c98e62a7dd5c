#pragma once

#include <cstddef>

namespace distreal {

// One block of address space. Memory is taken from the system page by page when it is first written, so what is
// reserved and never used costs nothing; it reads as zeros until then.
class Arena {
  public:
    Arena() = default;
    explicit Arena(std::size_t bytes) { grow(bytes); }
    ~Arena();
    Arena(Arena&& other) noexcept;
    Arena& operator=(Arena&& other) noexcept;

    // Makes room for this many bytes. When that needs a new block, contents are lost and data() changes; when it fails,
    // std::bad_alloc is thrown and the arena is empty.
    void grow(std::size_t bytes);

    // Gives the memory behind the first `bytes` back to the system; what lay there reads as zeros.
    void release_above(std::size_t bytes);

    std::byte* data() const { return data_; }     // at the start of a page; null when bytes() is 0
    std::size_t bytes() const { return bytes_; }  // what was asked for

  private:
    void release();

    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace distreal
