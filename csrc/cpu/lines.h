// Memory of a kernel's own that begins with a cache line: a vector that straddles two lines takes two loads, or two stores.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace fusion3d {

template <typename T>
struct LineAllocator {
  typedef T value_type;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* data, size_t) { ::operator delete(data, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const { return true; }
  template <typename U>
  bool operator!=(const LineAllocator<U>&) const { return false; }
};

template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

}  // namespace fusion3d
