// Memory of a kernel's own that begins with a cache line: a vector that straddles two lines takes two loads, or two stores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace fusion3d {

template <typename T>
struct LineAllocator {
  typedef T value_type;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) noexcept {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, size_t) { ::operator delete(data, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const { return true; }
  template <typename U>
  bool operator!=(const LineAllocator<U>&) const { return false; }
};

// Zero at first.
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

// Memory that is written before it is read.
struct FreeLines {
  template <typename T>
  void operator()(T* data) const { LineAllocator<T>().deallocate(data, 0); }
};
template <typename T>
using Scratch = std::unique_ptr<T[], FreeLines>;
template <typename T>
Scratch<T> scratch(int64_t count) {
  static_assert(std::is_trivial<T>::value, "nothing is constructed");
  return Scratch<T>(LineAllocator<T>().allocate(size_t(count)));
}

}  // namespace fusion3d
