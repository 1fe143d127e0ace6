// mma.sync on integers: which lane and register holds which element, and the product.
#pragma once
#include "ptx.h"

namespace ptx {

// Elements of 4 or 8 bits, from a register; sign or zero above them.
inline s32 element(u32 word, u32 index, u32 bits, bool is_signed) {
  u32 raw = word >> (bits * index) & ((1u << bits) - 1);
  return is_signed && raw >> (bits - 1) ? (s32)raw - (1 << bits) : (s32)raw;
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

// in[lane]: the registers of A, then B, then C; out[lane]: those of D.
inline void multiply(const Collective& c, u32 (*in)[16], u32 (*out)[8]) {
  Fragments f(c);
  static thread_local s32 a[16][64];
  static thread_local s32 b[8][64];
  for (u32 lane = 0; lane < 32; lane++) {
    for (u32 r = 0; r < f.a_registers(); r++)
      for (u32 e = 0; e < f.per; e++)
        a[f.a_row(lane, r)][f.a_column(lane, r) + e] = element(in[lane][r], e, f.bits, c.signed_a);
    for (u32 r = 0; r < f.b_registers(); r++)
      for (u32 e = 0; e < f.per; e++)
        b[lane / 4][f.b_row(lane, r) + e] =
            element(in[lane][f.a_registers() + r], e, f.bits, c.signed_b);
  }
  u32 first_c = f.a_registers() + f.b_registers();
  for (u32 lane = 0; lane < 32; lane++)
    for (u32 r = 0; r < f.c_registers(); r++) {
      const s32* row = a[lane / 4 + (r >= 2 ? 8 : 0)];
      const s32* column = b[lane % 4 * 2 + r % 2];
      s32 dot = 0;
      for (u32 i = 0; i < f.k; i++) dot += row[i] * column[i];
      out[lane][r] = in[lane][first_c + r] + (u32)dot;
    }
}

}  // namespace ptx
