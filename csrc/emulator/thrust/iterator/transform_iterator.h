// An array seen through a function.
#pragma once

#include <cstdint>

namespace thrust {

template <typename Function, typename Iterator>
struct transform_iterator {
  Iterator from;
  Function function;
  auto operator[](int64_t i) const { return function(from[i]); }
};

template <typename Function, typename Iterator>
transform_iterator<Function, Iterator> make_transform_iterator(Iterator from, Function function) {
  return {from, function};
}

}  // namespace thrust
