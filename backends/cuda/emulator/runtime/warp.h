// What the lanes of a warp do together, once all that take part have arrived.
#pragma once
#include "block.h"
#include "matrix.h"

namespace ptx {

// The warp's lanes; group: those that take part.
struct Warp {
  Fiber* lanes;
  u32 size, group;

  bool has(u32 lane) const { return lane < size && group >> lane & 1; }
  template <class F> void each(F f) const {
    for (u32 l = 0; l < size; l++)
      if (has(l)) f(l, lanes[l].thread);
  }
};

// The lane that lane i reads, and whether it is in range (else i itself).
inline u32 shuffle_source(u32 mode, u32 i, u32 b, u32 c, bool* in_range) {
  s32 lane = (s32)i, offset = (s32)(b & 31), clamp = (s32)(c & 31), mask = (s32)(c >> 8 & 31);
  s32 last = (lane & mask) | (clamp & ~mask & 31), first = lane & mask, j = lane;
  switch (mode) {
    case UP: j = lane - offset; *in_range = j >= last; break;
    case DOWN: j = lane + offset; *in_range = j <= last; break;
    case BFLY: j = lane ^ offset; *in_range = j <= last; break;
    default: j = first | (offset & ~mask & 31); *in_range = j <= last;
  }
  return *in_range ? (u32)j : i;
}

// The lane that asks for a value that is not there; 32: none does.
inline u32 shuffle(const Warp& w, u32 mode) {
  u32 wrong = 32;
  w.each([&](u32 i, Thread& t) {
    bool in_range;
    u32 j = shuffle_source(mode, i, t.in[1], t.in[2], &in_range);
    if (!w.has(j)) { wrong = min(wrong, i); return; }
    t.out[0] = w.lanes[j].thread.in[0];
    t.out[1] = in_range;
  });
  return wrong;
}

inline void vote(const Warp& w, u32 mode) {
  u32 ballot = 0;
  w.each([&](u32 i, Thread& t) { ballot |= (t.in[0] ? 1u : 0u) << i; });
  bool all = ballot == w.group, any = ballot != 0;
  u32 result = mode == ALL ? all : mode == ANY ? any : mode == UNI ? all || !any : ballot;
  w.each([&](u32, Thread& t) { t.out[0] = result; });
}

inline void match(const Warp& w, u32 mode) {
  w.each([&](u32, Thread& t) {
    u32 same = 0;
    w.each([&](u32 j, Thread& o) {
      same |= (u32)(o.in[0] == t.in[0] && o.in[1] == t.in[1]) << j;
    });
    t.out[1] = same == w.group;
    t.out[0] = mode == MATCH_ANY || t.out[1] ? same : 0;
  });
}

inline u32 reduced(u32 mode, u32 a, u32 b) {
  switch (mode) {
    case ADD_U: return a + b;
    case MIN_U: return min(a, b);
    case MAX_U: return max(a, b);
    case MIN_S: return (u32)min((s32)a, (s32)b);
    case MAX_S: return (u32)max((s32)a, (s32)b);
    case AND_B: return a & b;
    case OR_B: return a | b;
    default: return a ^ b;
  }
}
inline void reduce(const Warp& w, u32 mode) {
  bool first = true;
  u32 total = 0;
  w.each([&](u32, Thread& t) {
    total = first ? t.in[0] : reduced(mode, total, t.in[0]);
    first = false;
  });
  w.each([&](u32, Thread& t) { t.out[0] = total; });
}

// Row r of matrix i starts where lane 8 * i + r says. A lane gets the elements 2 * (lane % 4) and
// the next of row lane / 4; .trans swaps rows and columns.
inline void load_matrix(const Warp& w, u32 count, bool transposed) {
  const u8* shared = w.lanes[0].thread.shared;
  for (u32 i = 0; i < count; i++)
    for (u32 lane = 0; lane < 32; lane++) {
      u32 halves[2];
      for (u32 e = 0; e < 2; e++) {
        u32 row = lane / 4, column = lane % 4 * 2 + e;
        if (transposed) std::swap(row, column);
        halves[e] = load<u16>(shared + w.lanes[i * 8 + row].thread.in[0] + column * 2);
      }
      w.lanes[lane].thread.out[i] = halves[0] | halves[1] << 16;
    }
}

inline void matrix_product(const Warp& w, const Collective& c) {
  u32 in[32][16], out[32][8];
  for (u32 l = 0; l < 32; l++) memcpy(in[l], w.lanes[l].thread.in, sizeof in[l]);
  multiply(c, in, out);
  for (u32 l = 0; l < 32; l++) memcpy(w.lanes[l].thread.out, out[l], sizeof out[l]);
}

}  // namespace ptx
