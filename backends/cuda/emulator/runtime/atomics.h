// atom and red: one change of memory, whole for every other thread.
#pragma once

namespace ptx {

// add.f32 takes and gives zeros for subnormals in global memory, not in shared memory.
struct Atomic_add {
  bool flushing = false;
  template <class T> T value(T x) const {
    if constexpr (std::is_same_v<T, f32>) return flushing ? flush<true>(x) : x;
    else return x;
  }
  template <class T> T of(T old, T b) const {
    if constexpr (std::is_floating_point_v<T>) return canonical(value(value(old) + value(b)));
    else return add(old, b);
  }
};
#define PTX_ATOMIC(name, expression)                                     \
  struct Atomic_##name {                                                 \
    template <class T> T of(T old, T b) const { return (T)(expression); } \
  };
PTX_ATOMIC(min, min(old, b))
PTX_ATOMIC(max, max(old, b))
PTX_ATOMIC(and, old& b)
PTX_ATOMIC(or, old | b)
PTX_ATOMIC(xor, old ^ b)
PTX_ATOMIC(exch, b)
PTX_ATOMIC(inc, old >= b ? 0 : old + 1)
PTX_ATOMIC(dec, old == 0 || old > b ? b : old - 1)
#undef PTX_ATOMIC
struct Atomic_cas {
  template <class T> T of(T old, T expected, T b) const { return old == expected ? b : old; }
};

// Gives the value before.
template <class Op, class T, class... Rest>
inline T atomic(const Op& op, u8* at, T b, Rest... rest) {
  typedef bits_of<T> Bits;
  Bits* place = (Bits*)at;
  Bits old = __atomic_load_n(place, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(place, &old, bits_as<Bits>(op.of(bits_as<T>(old), b, rest...)),
                                      false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return bits_as<T>(old);
}
inline bool in_shared(Thread& t, const u8* at) {
  return at >= t.shared && at < t.shared + t.shared_size;
}

}  // namespace ptx
