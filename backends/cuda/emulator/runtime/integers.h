// Integer arithmetic as PTX defines it. Sums and products wrap around.
#pragma once

namespace ptx {

template <class T> using unsigned_of = std::make_unsigned_t<T>;
// Arithmetic on 16-bit values would be promoted to int: everything is computed in u64 and cut.
template <class T> inline T add(T a, T b) { return (T)((u64)a + (u64)b); }
template <class T> inline T sub(T a, T b) { return (T)((u64)a - (u64)b); }
template <class T> inline T mul_lo(T a, T b) { return (T)((u64)a * (u64)b); }
template <class T> inline T mad_lo(T a, T b, T c) { return (T)((u64)a * (u64)b + (u64)c); }
template <class T> inline T mul_hi(T a, T b) {
  typedef std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128> Wide;
  return (T)(((Wide)a * (Wide)b) >> (8 * sizeof(T)));
}
template <class T> inline T mad_hi(T a, T b, T c) { return add(mul_hi(a, b), c); }
template <class W, class T> inline W mul_wide(T a, T b) { return (W)((W)a * (W)b); }
template <class W, class T> inline W mad_wide(T a, T b, W c) { return add((W)((W)a * (W)b), c); }
template <class T> inline T mul24_lo(T a, T b) {
  s64 x = std::is_signed_v<T> ? (s64)((s32)((u32)a << 8) >> 8) : (s64)((u32)a & 0xffffff);
  s64 y = std::is_signed_v<T> ? (s64)((s32)((u32)b << 8) >> 8) : (s64)((u32)b & 0xffffff);
  return (T)(x * y);
}
template <class T> inline T mul24_hi(T a, T b) {
  s64 x = std::is_signed_v<T> ? (s64)((s32)((u32)a << 8) >> 8) : (s64)((u32)a & 0xffffff);
  s64 y = std::is_signed_v<T> ? (s64)((s32)((u32)b << 8) >> 8) : (s64)((u32)b & 0xffffff);
  return (T)((x * y) >> 16);
}
inline s32 clamp_s32(s64 x) {
  return x > 2147483647 ? 2147483647 : x < -2147483648LL ? -2147483647 - 1 : (s32)x;
}
inline s32 add_sat(s32 a, s32 b) { return clamp_s32((s64)a + b); }
inline s32 sub_sat(s32 a, s32 b) { return clamp_s32((s64)a - b); }

// PTX leaves the quotient by 0 open, and the one quotient that does not fit.
template <class T> inline T div(Thread& t, u32 line, T a, T b) {
  if (b == 0 || (std::is_signed_v<T> && b == (T)-1 && a == std::numeric_limits<T>::min()))
    fault(t, UNDEFINED, line);
  return (T)(a / b);
}
template <class T> inline T rem(Thread& t, u32 line, T a, T b) {
  if (b == 0 || (std::is_signed_v<T> && b == (T)-1 && a == std::numeric_limits<T>::min()))
    fault(t, UNDEFINED, line);
  return (T)(a % b);
}

template <class T> inline T neg(T a) { return sub((T)0, a); }
template <class T> inline T abs(T a) { return a < 0 ? neg(a) : a; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
template <class T> inline T max(T a, T b) { return a > b ? a : b; }
template <class T> inline T sad(T a, T b, T c) { return add(c, a < b ? sub(b, a) : sub(a, b)); }
template <class T> inline T bit_and(T a, T b) { return (T)(a & b); }
template <class T> inline T bit_or(T a, T b) { return (T)(a | b); }
template <class T> inline T bit_xor(T a, T b) { return (T)(a ^ b); }
template <class T> inline T bit_not(T a) { return std::is_same_v<T, bool> ? (T)!a : (T)~a; }
template <class T> inline T cnot(T a) { return (T)(a == 0); }

// Shifts by more than the width give what shifting on would give.
template <class T> inline T shl(T a, u32 n) { return n < 8 * sizeof(T) ? (T)(a << n) : (T)0; }
template <class T> inline T shr(T a, u32 n) {
  constexpr u32 top = 8 * sizeof(T) - 1;
  if (n <= top) return (T)(a >> n);
  return std::is_signed_v<T> ? (T)(a >> top) : (T)0;
}
inline u32 shf_l(u32 low, u32 high, u32 n) { return (u32)((((u64)high << 32 | low) << n) >> 32); }
inline u32 shf_r(u32 low, u32 high, u32 n) { return (u32)(((u64)high << 32 | low) >> n); }
inline u32 shf_l_wrap(u32 a, u32 b, u32 n) { return shf_l(a, b, n & 31); }
inline u32 shf_r_wrap(u32 a, u32 b, u32 n) { return shf_r(a, b, n & 31); }
inline u32 shf_l_clamp(u32 a, u32 b, u32 n) { return shf_l(a, b, n < 32 ? n : 32); }
inline u32 shf_r_clamp(u32 a, u32 b, u32 n) { return shf_r(a, b, n < 32 ? n : 32); }

template <class T> inline T bfe(T a, u32 position, u32 length) {
  constexpr u32 top = 8 * sizeof(T) - 1;
  typedef unsigned_of<T> U;
  position &= 0xff;
  length &= 0xff;
  U result = 0;
  if (position <= top && length > 0) {
    result = (U)((U)a >> position);
    if (length <= top) result &= (U)(((U)1 << length) - 1);
  }
  if (!std::is_signed_v<T> || length == 0) return (T)result;
  u32 last = position + length - 1 < top ? position + length - 1 : top;
  bool sign = ((U)a >> last) & 1;
  if (!sign) return (T)result;
  u32 filled = position > top ? 0 : last - position + 1;
  return (T)(filled > top ? result : (U)(result | (U)(~(U)0 << filled)));
}
template <class T> inline T bfi(T a, T b, u32 position, u32 length) {
  constexpr u32 width = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  if (position >= width || length == 0) return b;
  T mask = length >= width ? (T)~(T)0 : (T)(((T)1 << length) - 1);
  mask = (T)(mask << position);
  return (T)((b & ~mask) | ((T)(a << position) & mask));
}
inline u32 count_zeros(u32 a) { return a ? (u32)__builtin_clz(a) : 32; }
inline u32 count_zeros(u64 a) { return a ? (u32)__builtin_clzll(a) : 64; }
template <class T> inline u32 clz(T a) { return count_zeros(a); }
template <class T> inline u32 popc(T a) { return (u32)__builtin_popcountll(a); }
template <class T> inline u32 bfind(T a) {
  unsigned_of<T> u = (unsigned_of<T>)(a < 0 ? ~a : a);
  return 8 * sizeof(T) - 1 - count_zeros(u);
}
template <class T> inline u32 bfind_shift(T a) {
  unsigned_of<T> u = (unsigned_of<T>)(a < 0 ? ~a : a);
  return u == 0 ? 0xffffffffu : count_zeros(u);
}
template <class T> inline T brev(T a) {
  T r = 0;
  for (u32 i = 0; i < 8 * sizeof(T); i++) r |= (T)((a >> i & 1) << (8 * sizeof(T) - 1 - i));
  return r;
}

// prmt: each of 4 bytes is chosen among the 8 of b:a; bit 3 of a choice copies its sign instead.
inline u32 byte_of(u64 from, u32 choice) {
  u32 byte = (u32)(from >> (8 * (choice & 7))) & 0xff;
  return choice & 8 ? (byte & 0x80 ? 0xff : 0) : byte;
}
inline u32 chosen(u32 a, u32 b, u32 c0, u32 c1, u32 c2, u32 c3) {
  u64 from = (u64)b << 32 | a;
  return byte_of(from, c0) | byte_of(from, c1) << 8 | byte_of(from, c2) << 16 |
         byte_of(from, c3) << 24;
}
inline u32 prmt(u32 a, u32 b, u32 c) {
  return chosen(a, b, c & 15, c >> 4 & 15, c >> 8 & 15, c >> 12 & 15);
}
inline u32 prmt_f4e(u32 a, u32 b, u32 c) {
  c &= 3;
  return chosen(a, b, c, c + 1, c + 2, c + 3);
}
inline u32 prmt_b4e(u32 a, u32 b, u32 c) {
  c &= 3;
  return chosen(a, b, c, (c + 7) & 7, (c + 6) & 7, (c + 5) & 7);
}
inline u32 prmt_rc8(u32 a, u32 b, u32 c) { return chosen(a, b, c & 3, c & 3, c & 3, c & 3); }
inline u32 prmt_ecl(u32 a, u32 b, u32 c) {
  u32 m = c & 3;
  return chosen(a, b, m, m > 1 ? m : 1, m > 2 ? m : 2, 3);
}
inline u32 prmt_ecr(u32 a, u32 b, u32 c) {
  u32 m = c & 3;
  return chosen(a, b, 0, m < 1 ? m : 1, m < 2 ? m : 2, m);
}
inline u32 prmt_rc16(u32 a, u32 b, u32 c) {
  u32 h = (c & 1) * 2;
  return chosen(a, b, h, h + 1, h, h + 1);
}

template <class T> inline T choose(T a, T b, bool first) { return first ? a : b; }
template <class T> inline T choose_positive(T a, T b, s32 c) { return c >= 0 ? a : b; }

template <u32 LUT> inline u32 lop3(u32 a, u32 b, u32 c) {
  u32 r = 0;
  if (LUT & 0x01) r |= ~a & ~b & ~c;
  if (LUT & 0x02) r |= ~a & ~b & c;
  if (LUT & 0x04) r |= ~a & b & ~c;
  if (LUT & 0x08) r |= ~a & b & c;
  if (LUT & 0x10) r |= a & ~b & ~c;
  if (LUT & 0x20) r |= a & ~b & c;
  if (LUT & 0x40) r |= a & b & ~c;
  if (LUT & 0x80) r |= a & b & c;
  return r;
}

template <class A, class B, class C> inline C dp4a(u32 a, u32 b, C c) {
  for (u32 i = 0; i < 4; i++)
    c = add(c, (C)((s32)(A)(a >> 8 * i) * (s32)(B)(b >> 8 * i)));
  return c;
}
// A: s16 or u16, the halves of a; B: s8 or u8, two bytes of b from byte `first`.
template <class A, class B, u32 first, class C> inline C dp2a(u32 a, u32 b, C c) {
  for (u32 i = 0; i < 2; i++)
    c = add(c, (C)((s32)(A)(a >> 16 * i) * (s32)(B)(b >> 8 * (first + i))));
  return c;
}

// Two 16-bit values in a word, or four bytes.
template <class T, class F> inline u32 by_halves(u32 a, u32 b, F f) {
  u32 low = (u16)f((T)a, (T)b), high = (u16)f((T)(a >> 16), (T)(b >> 16));
  return high << 16 | low;
}
template <class T> inline u32 halves_add(u32 a, u32 b) { return by_halves<T>(a, b, add<T>); }
template <class T> inline u32 halves_min(u32 a, u32 b) { return by_halves<T>(a, b, min<T>); }
template <class T> inline u32 halves_max(u32 a, u32 b) { return by_halves<T>(a, b, max<T>); }
template <class T> inline u32 byte_difference(u32 a, u32 b, u32 i) {
  s32 d = (s32)(T)(a >> 8 * i) - (s32)(T)(b >> 8 * i);
  return (u32)(d < 0 ? -d : d);
}
template <class T> inline u32 differences(u32 a, u32 b, u32) {
  u32 r = 0;
  for (u32 i = 0; i < 4; i++) r |= byte_difference<T>(a, b, i) << 8 * i;
  return r;
}
template <class T> inline u32 sum_of_differences(u32 a, u32 b, u32 c) {
  for (u32 i = 0; i < 4; i++) c += byte_difference<T>(a, b, i);
  return c;
}

}  // namespace ptx
