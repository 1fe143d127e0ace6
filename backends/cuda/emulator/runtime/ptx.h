// What translated kernels see: a thread's state, its memory, the runtime's functions.
//
// A kernel is one C++ function, called once per thread on a stack of its own. It returns to the
// scheduler (runtime.cpp) at barriers and at warp instructions. Registers are local variables;
// they hold bits, and every use says how it reads them.
#pragma once
#include <stdint.h>
#include <string.h>
#include <limits>
#include <type_traits>

namespace ptx {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;
struct f16 { u16 bits; };

// ---- addresses. Allocation number n of a Memory has the generic addresses from
// (FIRST_SLOT + n) << SLOT_BITS: whatever a kernel adds to a pointer by mistake, within 64 GiB, is
// outside of every allocation, and no address is one of the host.
constexpr unsigned SLOT_BITS = 36;
constexpr u64 FIRST_SLOT = 0x100000;
constexpr u64 SLOT_MASK = (u64(1) << SLOT_BITS) - 1;
constexpr u64 SHARED_WINDOW = u64(1) << 48;
constexpr u64 LOCAL_WINDOW = u64(2) << 48;
constexpr u64 WINDOW_MASK = ~((u64(1) << 32) - 1);

// Read and written by blocks of one launch: the number of a block + 1, ATOMIC when it was atomic;
// SEVERAL: by more than one block.
struct Touched { u32 writer, reader; };
constexpr u32 ATOMIC = 0x80000000u, SEVERAL = 0x7fffffffu;

struct Allocation {
  u8* host;          // null: free
  u64 size;
  u8* written;       // a 1 per byte that holds a value; null: all do
  Touched* touched;  // null: not watched
  u32 constant;      // only ld.const and generic loads may read it, nothing may write it
};

enum FaultKind : u32 {
  OUT_OF_BOUNDS = 1, MISALIGNED, UNINITIALISED, RACE, BLOCK_RACE, DEADLOCK, DIVERGENT, UNDEFINED,
  TRAP, RUNAWAY
};

enum Access : u32 { READ = 1, WRITE = 2, ATOMIC_ACCESS = 3 };

// What the lanes of a warp do together; lanes meet when kind and parameters are equal (and the
// line, for an .aligned one).
enum CollectiveKind : u32 { WARP_SYNC, SHUFFLE, VOTE, MATCH, REDUCE, LOAD_MATRIX, MATRIX_PRODUCT };
enum ShuffleMode : u32 { UP, DOWN, BFLY, IDX };
enum VoteMode : u32 { ALL, ANY, UNI, BALLOT };
enum MatchMode : u32 { MATCH_ANY, MATCH_ALL };
enum ReduceMode : u32 { ADD_U, MIN_U, MAX_U, MIN_S, MAX_S, AND_B, OR_B, XOR_B };
struct Collective {
  u32 kind, aligned;
  u32 mode, bits;                      // of shuffle, vote, match, reduce; .trans of load_matrix
  u32 m, n, k, signed_a, signed_b;  // of matrix_product; n: matrices of load_matrix
  const char* name;
};

struct Thread;

struct Runtime {
  void (*fault)(Thread*, u32 kind, u32 line, u64 address, u64 detail);  // does not return
  void (*collective)(Thread*, const Collective*, u32 mask, u32 line);
  u32 (*active_mask)(Thread*, u32 line);
  u32 (*barrier)(Thread*, u32 id, u32 count, u32 aligned, u32 reduction, u32 value, u32 line);
  void (*shared_access)(Thread*, u32 address, u32 bytes, u32 access, u32 line);
  void (*global_access)(Thread*, Allocation*, u64 offset, u32 bytes, u32 access, u32 line);
  void (*copy_async)(Thread*, u32 to, const u8* from, u32 bytes, u32 given, u32 line);
  void (*commit)(Thread*);
  void (*wait)(Thread*, u32 pending);
  void (*pause)(Thread*, u32 line);
};

constexpr u32 CHECK_SHARED = 1, CHECK_GLOBAL = 2;

struct Dim { u32 x, y, z; };

struct Thread {
  const Runtime* runtime;
  u8* shared;
  u32 shared_size, dynamic_size;
  u32 checks;
  u32 fuel;  // backward branches until pause
  Allocation* allocations;
  u64 slots;
  const u64* symbols;
  u64* counts;
  u8* local;
  u32 local_size, lane, warp, warps;
  Dim tid, ntid, ctaid, nctaid;
  u32 in[16], out[8];
};

// ---- registers

template <class To, class From> inline To bits_as(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "");
  memcpy(&to, &from, sizeof to);
  return to;
}
template <size_t N> struct Unsigned;
template <> struct Unsigned<1> { typedef u8 type; };
template <> struct Unsigned<2> { typedef u16 type; };
template <> struct Unsigned<4> { typedef u32 type; };
template <> struct Unsigned<8> { typedef u64 type; };
template <class T> using bits_of = typename Unsigned<sizeof(T)>::type;

// A register's low bits as a T.
template <class T, class R> inline T get(R bits) { return bits_as<T>((bits_of<T>)bits); }
// A value for a register: signed types are extended with their sign, others with zeros.
template <class R, class T> inline R put(T value) {
  if constexpr (std::is_integral_v<T>) return (R)value;
  else return (R)bits_as<bits_of<T>>(value);
}

// ---- memory

[[noreturn]] inline void fault(Thread& t, u32 kind, u32 line, u64 address = 0, u64 detail = 0) {
  t.runtime->fault(&t, kind, line, address, detail);
  __builtin_unreachable();
}
#define PTX_CALL static __attribute__((noinline, unused))

template <u32 N> PTX_CALL u8* global_at(Thread& t, u64 address, u32 access, u32 line) {
  u64 slot = (address >> SLOT_BITS) - FIRST_SLOT, offset = address & SLOT_MASK;
  if (slot >= t.slots || offset + N > t.allocations[slot].size ||
      (access != READ && t.allocations[slot].constant))
    fault(t, OUT_OF_BOUNDS, line, address, N);
  if (address % N) fault(t, MISALIGNED, line, address, N);
  Allocation* a = &t.allocations[slot];
  if (t.checks & CHECK_GLOBAL) t.runtime->global_access(&t, a, offset, N, access, line);
  return a->host + offset;
}
template <u32 N> PTX_CALL u8* shared_at(Thread& t, u64 address, u32 access, u32 line) {
  if (address + N > t.shared_size || address + N < N)
    fault(t, OUT_OF_BOUNDS, line, SHARED_WINDOW + (u32)address, N);
  if (address % N) fault(t, MISALIGNED, line, SHARED_WINDOW + address, N);
  if (t.checks & CHECK_SHARED) t.runtime->shared_access(&t, (u32)address, N, access, line);
  return t.shared + address;
}
template <u32 N> PTX_CALL u8* local_at(Thread& t, u64 address, u32, u32 line) {
  if (address + N > t.local_size || address + N < N)
    fault(t, OUT_OF_BOUNDS, line, LOCAL_WINDOW + (u32)address, N);
  if (address % N) fault(t, MISALIGNED, line, LOCAL_WINDOW + address, N);
  return t.local + address;
}
template <u32 N> PTX_CALL u8* generic_at(Thread& t, u64 address, u32 access, u32 line) {
  u64 window = address & WINDOW_MASK;
  if (window == SHARED_WINDOW) return shared_at<N>(t, (u32)address, access, line);
  if (window == LOCAL_WINDOW) return local_at<N>(t, (u32)address, access, line);
  return global_at<N>(t, address, access, line);
}
template <u32 N> inline const u8* param_at(Thread& t, const u8* params, u32 size, u64 address,
                                           u32 line) {
  if (address + N > size || address + N < N) fault(t, OUT_OF_BOUNDS, line, address, N);
  return params + address;
}
template <class T> inline T load(const u8* at) { T v; memcpy(&v, at, sizeof v); return v; }
template <class T> inline void store(u8* at, T v) { memcpy(at, &v, sizeof v); }

template <u32 N>
PTX_CALL void copy_async(Thread& t, u64 to, u64 from, u32 given, u32 line) {
  if (given > N) fault(t, UNDEFINED, line, given, N);
  if (from % N) fault(t, MISALIGNED, line, from, N);
  const u8* source = nullptr;
  if (given) {
    u64 slot = (from >> SLOT_BITS) - FIRST_SLOT, offset = from & SLOT_MASK;
    if (slot >= t.slots || offset + given > t.allocations[slot].size)
      fault(t, OUT_OF_BOUNDS, line, from, given);
    Allocation* a = &t.allocations[slot];
    if (t.checks & CHECK_GLOBAL) t.runtime->global_access(&t, a, offset, given, READ, line);
    source = a->host + offset;
  }
  shared_at<N>(t, to, WRITE, line);
  t.runtime->copy_async(&t, (u32)to, source, N, given, line);
}

// A generic address of a global one and back: they are equal; of shared and local memory the low
// 32 bits are the address in the window.
inline u64 from_window(Thread& t, u64 window, u64 address, u32 line) {
  if ((address & WINDOW_MASK) != window) fault(t, OUT_OF_BOUNDS, line, address, 0);
  return (u32)address;
}

inline bool is_constant(Thread& t, u64 a) {
  u64 slot = (a >> SLOT_BITS) - FIRST_SLOT;
  return slot < t.slots && t.allocations[slot].constant;
}
inline bool is_global(Thread& t, u64 a) {
  return (a >> SLOT_BITS) - FIRST_SLOT < t.slots && !is_constant(t, a);
}
inline bool in_window(u64 a, u64 window) { return (a & WINDOW_MASK) == window; }

// A branch backwards: a thread that spins lets others run, and one that never ends is stopped.
inline void back(Thread& t, u32 line) {
  if (--t.fuel == 0) t.runtime->pause(&t, line);
}

}  // namespace ptx
#include "integers.h"
#include "floats.h"
#include "convert.h"
#include "atomics.h"
