// cvt: between integers, between floats, and from one to the other.
#pragma once

namespace ptx {

template <class T> constexpr bool is_half = std::is_same_v<T, f16>;
template <class T> constexpr bool is_float = std::is_floating_point_v<T> || is_half<T>;

inline f32 widen(f16 h) {
  u32 sign = (u32)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 0x3ff;
  if (exponent == 31)
    return bits_as<f32>(fraction ? 0x7fffffffu : sign | 0x7f800000u);
  if (exponent == 0) {
    f32 value = (f32)fraction * 0x1p-24f;
    return bits_as<f32>(bits_as<u32>(value) | sign);
  }
  return bits_as<f32>(sign | (exponent + 112) << 23 | fraction << 13);
}
template <Rounding R> inline f16 narrow(f64 x) {
  u64 bits = bits_as<u64>(x);
  u16 sign = (u16)(bits >> 48 & 0x8000);
  if (is_nan(x)) return {0x7fff};
  f64 size = fabs<false>(x);
  bool away = R == RP ? !sign : R == RM ? sign != 0 : false;
  if (size > 65504) {
    bool infinite = __builtin_isinf(size) || away || (R == RN && size >= 65520);
    return {(u16)(sign | (infinite ? 0x7c00 : 0x7bff))};
  }
  int exponent = size < 0x1p-14 ? -14 : __builtin_ilogb(size);
  f64 scaled = __builtin_ldexp(size, 10 - exponent);  // a multiple of 1 is a multiple of the last bit
  f64 whole = __builtin_floor(scaled), rest = scaled - whole;
  bool odd = __builtin_fmod(whole, 2) != 0;
  if (R == RN ? rest > 0.5 || (rest == 0.5 && odd) : away && rest > 0) whole += 1;
  u32 magnitude = (u32)whole + ((u32)(exponent + 14) << 10);  // a carry goes into the exponent
  return {(u16)(sign | magnitude)};
}

template <Rounding R, class T> inline T to_whole(T x) {
  if constexpr (std::is_same_v<T, f32>)
    return R == RN   ? __builtin_rintf(x)
           : R == RZ ? __builtin_truncf(x)
           : R == RM ? __builtin_floorf(x)
                     : __builtin_ceilf(x);
  else
    return R == RN   ? __builtin_rint(x)
           : R == RZ ? __builtin_trunc(x)
           : R == RM ? __builtin_floor(x)
                     : __builtin_ceil(x);
}

// A whole number to an integer, clamped to its range. NaN gives 0, or the top bit alone where one
// side has 64 bits.
template <class D, class S> inline D clamp_to(S x) {
  typedef std::numeric_limits<D> Limits;
  if (is_nan(x)) return sizeof(D) == 8 || sizeof(S) == 8 ? (D)((u64)1 << (8 * sizeof(D) - 1)) : (D)0;
  S above = std::is_signed_v<D> ? -(S)Limits::min() : 2 * (S)((u64)1 << (8 * sizeof(D) - 1));
  if (x >= above) return Limits::max();
  if (x <= (S)Limits::min()) return Limits::min();
  return (D)x;
}

// One integer operand, converted in another rounding mode.
template <class D, class S> PTX_CALL D int_in_mode(int mode, S a) {
  volatile S x = a;
  volatile D result;
  fesetround(mode);
  result = (D)x;
  fesetround(FE_TONEAREST);
  return result;
}

// FTZ holds for f32 operands and results.
template <class D, class S, Rounding R, bool WHOLE, bool FTZ, bool SAT> inline D cvt(S a) {
  if constexpr (is_half<S>) {
    return cvt<D, f32, R, WHOLE, false, SAT>(widen(a));
  } else if constexpr (is_half<D>) {
    f64 x = (f64)flush<FTZ>((std::conditional_t<is_float<S>, S, f64>)a);
    if (WHOLE) x = to_whole<R>(x);
    if (SAT) x = is_nan(x) || x <= 0 ? 0 : x >= 1 ? 1 : x;
    return narrow<R>(x);
  } else if constexpr (is_float<S> && is_float<D>) {
    a = flush<FTZ>(a);
    if (WHOLE) return finish<FTZ, SAT>((D)to_whole<R>(a));
    if (R == RN || sizeof(D) >= sizeof(S)) return finish<FTZ, SAT>((D)a);
    return finish<FTZ, SAT>(int_in_mode<D, S>(FE_MODES[R], a));
  } else if constexpr (is_float<S>) {
    return clamp_to<D>(to_whole<R>(flush<FTZ>(a)));
  } else if constexpr (is_float<D>) {
    return finish<FTZ, SAT>(R == RN ? (D)a : int_in_mode<D, S>(FE_MODES[R], a));
  } else if constexpr (SAT) {
    __int128 wide = (__int128)a, low = (__int128)std::numeric_limits<D>::min(),
             high = (__int128)std::numeric_limits<D>::max();
    return (D)(wide < low ? low : wide > high ? high : wide);
  } else {
    return (D)a;
  }
}

// cvt.pack.sat: b in the low part, a above it, then (for 8 bits) c's low half on top.
template <class D> inline u32 pack2(s32 a, s32 b) {
  return (u32)(u16)cvt<D, s32, RN, false, false, true>(a) << 16 |
         (u16)cvt<D, s32, RN, false, false, true>(b);
}
template <class D> inline u32 pack4(s32 a, s32 b, u32 c) {
  return c << 16 | (u32)(u8)cvt<D, s32, RN, false, false, true>(a) << 8 |
         (u8)cvt<D, s32, RN, false, false, true>(b);
}

}  // namespace ptx
