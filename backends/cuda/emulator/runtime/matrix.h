// mma.sync on integers: which lane and register holds which element, and the product.
#pragma once
#include "ptx.h"

namespace ptx {

// The elements of a register, the lowest first.
template <u32 BITS, bool SIGNED> inline void spread(u32 word, s16* to) {
  for (u32 e = 0; e < 32 / BITS; e++) {
    u32 up = word << (32 - BITS - BITS * e);
    to[e] = (s16)(SIGNED ? (s32)up >> (32 - BITS) : (s32)(up >> (32 - BITS)));
  }
}
typedef void (*Spread)(u32, s16*);
inline Spread spread_of(u32 bits, u32 is_signed) {
  if (bits == 8) return is_signed ? spread<8, true> : spread<8, false>;
  return is_signed ? spread<4, true> : spread<4, false>;
}

// The fragments: with g = lane / 4, t = lane % 4 and e elements in a register, register r of A
// holds row g (+ 8 in odd registers when there are 16 rows), columns t * e .. of the r'th (of 16
// rows: r / 2'th) group of 4 * e columns; register r of B the same of column g; register r of C row
// g (+ 8 from r = 2), column 2 * t + r % 2.
struct Fragments {
  u32 m, n, k, bits, per;
  explicit Fragments(const Collective& c) : m(c.m), n(c.n), k(c.k), bits(c.bits), per(32 / c.bits) {}
  u32 a_registers() const { return m * k / 32 / per; }
  u32 b_registers() const { return n * k / 32 / per; }
  u32 c_registers() const { return m * n / 32; }
  u32 a_row(u32 lane, u32 r) const { return lane / 4 + (m == 16 && r % 2 ? 8 : 0); }
  u32 a_column(u32 lane, u32 r) const { return lane % 4 * per + (m == 16 ? r / 2 : r) * 4 * per; }
  u32 b_row(u32 lane, u32 r) const { return lane % 4 * per + r * 4 * per; }
};

// Both rows hold k values, a multiple of 16.
inline s32 dot(const s16* a, const s16* b, u32 k) {
  s32 sums[16] = {};
  for (u32 i = 0; i < k; i += 16)
    for (u32 j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
  s32 sum = 0;
  for (s32 one : sums) sum += one;
  return sum;
}

// in[lane]: the registers of A, then B, then C; out[lane]: those of D. Sums wrap around.
inline void multiply(const Collective& c, u32 (*in)[16], u32 (*out)[8]) {
  Fragments f(c);
  alignas(32) s16 a[16][64], b[8][64];
  Spread spread_a = spread_of(c.bits, c.signed_a), spread_b = spread_of(c.bits, c.signed_b);
  u32 first_b = f.a_registers(), first_c = first_b + f.b_registers();
  for (u32 lane = 0; lane < 32; lane++) {
    for (u32 r = 0; r < first_b; r++)
      spread_a(in[lane][r], &a[f.a_row(lane, r)][f.a_column(lane, r)]);
    for (u32 r = 0; r < f.b_registers(); r++)
      spread_b(in[lane][first_b + r], &b[lane / 4][f.b_row(lane, r)]);
  }
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 r = 0; r < f.c_registers(); r++) {
      const s16 *row = a[lane / 4 + (r >= 2 ? 8 : 0)], *column = b[lane % 4 * 2 + r % 2];
      out[lane][r] = in[lane][first_c + r] + (u32)dot(row, column, c.k);
    }
}

}  // namespace ptx
