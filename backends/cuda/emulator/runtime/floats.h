// Float arithmetic as PTX defines it: every operation is one IEEE rounding, NaN results of f32 are
// 0x7fffffff, .ftz takes and gives zeros for subnormals, .sat clamps to [0, 1].
#pragma once
#include <fenv.h>

namespace ptx {

enum Rounding { RN, RZ, RM, RP };
constexpr int FE_MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

template <class T> inline bool is_nan(T x) { return x != x; }
template <bool FTZ> inline f32 flush(f32 x) {
  u32 bits = bits_as<u32>(x);
  if (FTZ && (bits & 0x7f800000) == 0) return bits_as<f32>(bits & 0x80000000);
  return x;
}
template <bool FTZ> inline f64 flush(f64 x) { return x; }
inline f32 canonical(f32 x) { return is_nan(x) ? bits_as<f32>(0x7fffffffu) : x; }
inline f64 canonical(f64 x) { return x; }
template <bool FTZ, bool SAT, class T> inline T finish(T x) {
  if (SAT) return is_nan(x) || x <= 0 ? (T)0 : x >= 1 ? (T)1 : flush<FTZ>(x);
  return canonical(flush<FTZ>(x));
}

struct Add { template <class T> static T of(T a, T b, T) { return a + b; } };
struct Sub { template <class T> static T of(T a, T b, T) { return a - b; } };
struct Mul { template <class T> static T of(T a, T b, T) { return a * b; } };
struct Div { template <class T> static T of(T a, T b, T) { return a / b; } };
struct Rcp { template <class T> static T of(T a, T, T) { return (T)1 / a; } };
struct Fma {
  static f32 of(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
  static f64 of(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
};
struct Sqrt {
  static f32 of(f32 a, f32, f32) { return __builtin_sqrtf(a); }
  static f64 of(f64 a, f64, f64) { return __builtin_sqrt(a); }
};

// In another rounding mode than the compiler assumes: volatile keeps the operation between the
// two changes of mode.
template <class Op, class T> PTX_CALL T in_mode(int mode, T a, T b, T c) {
  volatile T x = a, y = b, z = c, result;
  fesetround(mode);
  result = Op::of((T)x, (T)y, (T)z);
  fesetround(FE_TONEAREST);
  return result;
}
template <class Op, Rounding R, bool FTZ, bool SAT, class T>
inline T rounded(T a, T b = 0, T c = 0) {
  a = flush<FTZ>(a), b = flush<FTZ>(b), c = flush<FTZ>(c);
  if (R == RN) return finish<FTZ, SAT>(Op::of(a, b, c));
  return finish<FTZ, SAT>(in_mode<Op, T>(FE_MODES[R], a, b, c));
}

template <class T> constexpr bits_of<T> SIGN = (bits_of<T>)1 << (8 * sizeof(T) - 1);
template <bool FTZ, class T> inline T fneg(T a) {
  return canonical(flush<FTZ>(bits_as<T>((bits_of<T>)(bits_as<bits_of<T>>(a) ^ SIGN<T>))));
}
template <bool FTZ, class T> inline T fabs(T a) {
  return canonical(flush<FTZ>(bits_as<T>((bits_of<T>)(bits_as<bits_of<T>>(a) & ~SIGN<T>))));
}
// The sign of a on the value of b.
template <class T> inline T copysign(T a, T b) {
  bits_of<T> sign = bits_as<bits_of<T>>(a) & SIGN<T>;
  return bits_as<T>((bits_of<T>)(sign | (bits_as<bits_of<T>>(b) & ~SIGN<T>)));
}
template <class T> inline bool negative(T a) { return bits_as<bits_of<T>>(a) & SIGN<T>; }

// -0 is below +0; a NaN gives the other operand, or NaN with .NaN.
template <bool FTZ, bool NAN_WINS, class T> inline T fmin(T a, T b) {
  a = flush<FTZ>(a), b = flush<FTZ>(b);
  if (is_nan(a) || is_nan(b)) return canonical(NAN_WINS ? a + b : is_nan(a) ? b : a);
  if (a == b) return negative(a) ? a : b;
  return a < b ? a : b;
}
template <bool FTZ, bool NAN_WINS, class T> inline T fmax(T a, T b) {
  a = flush<FTZ>(a), b = flush<FTZ>(b);
  if (is_nan(a) || is_nan(b)) return canonical(NAN_WINS ? a + b : is_nan(a) ? b : a);
  if (a == b) return negative(a) ? b : a;
  return a > b ? a : b;
}

// Comparisons. Those ending in u hold when an operand is NaN.
#define PTX_COMPARE(name, ordered, unordered)                                  \
  template <bool FTZ, class T> inline bool name(T a, T b) {                    \
    if constexpr (std::is_floating_point_v<T>) {                               \
      a = flush<FTZ>(a), b = flush<FTZ>(b);                                    \
      return is_nan(a) || is_nan(b) ? unordered : (ordered);                   \
    } else return (ordered);                                                   \
  }
PTX_COMPARE(cmp_eq, a == b, false)
PTX_COMPARE(cmp_ne, a != b, false)
PTX_COMPARE(cmp_lt, a < b, false)
PTX_COMPARE(cmp_le, a <= b, false)
PTX_COMPARE(cmp_gt, a > b, false)
PTX_COMPARE(cmp_ge, a >= b, false)
PTX_COMPARE(cmp_equ, a == b, true)
PTX_COMPARE(cmp_neu, a != b, true)
PTX_COMPARE(cmp_ltu, a < b, true)
PTX_COMPARE(cmp_leu, a <= b, true)
PTX_COMPARE(cmp_gtu, a > b, true)
PTX_COMPARE(cmp_geu, a >= b, true)
PTX_COMPARE(cmp_num, true, false)
PTX_COMPARE(cmp_nan, false, true)
#undef PTX_COMPARE

template <class D> inline D set_value(bool holds) {
  if constexpr (std::is_floating_point_v<D>) return holds ? (D)1 : (D)0;
  else return holds ? (D)~(D)0 : (D)0;
}

template <class T> inline bool test_finite(T a) { return a - a == 0; }
template <class T> inline bool test_infinite(T a) { return a == a && a - a != 0; }
template <class T> inline bool test_number(T a) { return a == a; }
template <class T> inline bool test_notanumber(T a) { return a != a; }
template <class T> inline bool test_subnormal(T a) {
  T size = fabs<false>(a);
  return size > 0 && size < std::numeric_limits<T>::min();
}
template <class T> inline bool test_normal(T a) {
  return test_finite(a) && a != 0 && !test_subnormal(a);
}

template <bool FTZ, class T> inline T choose_float(T a, T b, f32 c) {
  return flush<FTZ>(c) >= 0 ? a : b;
}

}  // namespace ptx
