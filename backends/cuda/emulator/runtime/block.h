// A block of threads: their stacks, states, shared memory, and the scheduler's view of them.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "fiber.h"
#include "ptx.h"
#include "shadow.h"

namespace ptx {

typedef void (*KernelFunction)(Thread*, const u8*);

// What Python passes and reads; the layout is repeated in layout.py.
struct Launch {
  KernelFunction kernel;
  const u8* params;
  Dim grid, block;
  u32 static_shared, dynamic_shared, checks, workers;
  u64 stack_bytes, branches;
  Allocation* allocations;
  u64 slots;
  const u64* symbols;
  u64* counts;
};
struct Report {
  u32 kind, line;
  u32 block[3], thread[3];
  u64 address, bytes;
  char text[4096];
};

enum State : u32 { READY, AT_COLLECTIVE, AT_ACTIVE_MASK, AT_BARRIER, PAUSED, EXITED };

struct Copy { u32 to, bytes; u8 data[16]; };

struct Fiber {
  Thread thread;  // first: a Thread* is a Fiber*
  Context context;
  struct Block* block;
  const u8* params;
  u32 index;
  State state;
  u32 line, mask, result;
  const Collective* collective;
  u32 barrier, expected, aligned, reduction, value;
  u64 branches;
  std::vector<std::vector<Copy>> groups;  // committed copies, oldest first
  std::vector<Copy> open;                 // not committed yet
};

struct Block {
  const Launch* launch;
  u32 number;
  Dim position;
  std::vector<Fiber> fibers;
  std::vector<u8> shared;
  Stacks stacks;
  Shadow shadow;
  Context scheduler;
  Report* report;
  bool failed = false;
};

inline Fiber& fiber_of(Thread* t) { return *(Fiber*)t; }
inline void leave(Fiber& f, State state) {
  f.state = state;
  Context::change(f.context, f.block->scheduler);
}

}  // namespace ptx
