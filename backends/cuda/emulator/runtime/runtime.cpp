// Runs the blocks of a launch: a scheduler over the warps and threads of one block.
#include <atomic>
#include <mutex>
#include <thread>

#include "calls.h"
#include "warp.h"

namespace ptx {
namespace {

void enter(void* fiber) {
  Fiber& f = *(Fiber*)fiber;
  f.block->launch->kernel(&f.thread, f.params);
  leave(f, EXITED);
}

void prepare(Block& b, const Launch& l, u32 number) {
  b.launch = &l, b.number = number, b.failed = false;
  b.position = {number % l.grid.x, number / l.grid.x % l.grid.y, number / (l.grid.x * l.grid.y)};
  u32 count = l.block.x * l.block.y * l.block.z, warps = (count + 31) / 32;
  u32 bytes = l.static_shared + l.dynamic_shared;
  b.shared.assign(bytes + 16, 0xA5);
  b.stacks.reserve(count, l.stack_bytes);
  b.fibers.resize(count);
  if (l.checks & CHECK_SHARED) b.shadow.begin(bytes, warps);
  u8* shared = (u8*)(((uintptr_t)b.shared.data() + 15) & ~(uintptr_t)15);
  for (u32 i = 0; i < count; i++) {
    Fiber& f = b.fibers[i];
    f.block = &b, f.params = l.params, f.index = i, f.state = READY, f.branches = 0;
    f.groups.clear(), f.open.clear();
    Thread& t = f.thread;
    t.runtime = &RUNTIME, t.shared = shared, t.shared_size = bytes;
    t.dynamic_size = l.dynamic_shared, t.checks = l.checks, t.fuel = 65536;
    t.allocations = l.allocations, t.slots = l.slots, t.symbols = l.symbols, t.counts = l.counts;
    t.local = nullptr, t.local_size = 0, t.lane = i % 32, t.warp = i / 32, t.warps = warps;
    t.tid = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
    t.ntid = l.block, t.ctaid = b.position, t.nctaid = l.grid;
    f.context.start(b.stacks.of(i), b.stacks.size(), enter, &f);
  }
}

Warp warp_of(Block& b, u32 w) {
  return {&b.fibers[w * 32], min(32u, (u32)b.fibers.size() - w * 32), 0};
}
u32 lanes_in(const Warp& w, State state) {
  u32 mask = 0;
  for (u32 l = 0; l < w.size; l++) mask |= (u32)(w.lanes[l].state == state) << l;
  return mask;
}

bool same_instruction(const Fiber& a, const Fiber& b) {
  if (a.collective == b.collective) return true;
  return !a.collective->aligned && !strcmp(a.collective->name, b.collective->name);
}

bool rows_are_fine(Block& b, const Warp& w, const Collective& c) {
  for (u32 l = 0; l < c.n * 8; l++) {
    Fiber& f = w.lanes[l];
    u32 address = f.thread.in[0];
    u64 at = SHARED_WINDOW + address;
    if ((u64)address + 16 > f.thread.shared_size)
      fail(f, OUT_OF_BOUNDS, f.line, at, 16, "");
    else if (address % 16)
      fail(f, MISALIGNED, f.line, at, 16, "");
    else if (f.thread.checks & CHECK_SHARED)
      check_shared(f, address, 16, READ, f.line);
    if (b.failed) return false;
  }
  return true;
}

void execute(Block& b, u32 number, Warp& w, Fiber& first) {
  const Collective& c = *first.collective;
  if (c.aligned && c.kind >= LOAD_MATRIX && w.group != 0xffffffff) {
    fail(first, DIVERGENT, first.line, 0, 0, "it needs all 32 lanes of the warp");
    return;
  }
  u32 wrong = 32;
  switch (c.kind) {
    case WARP_SYNC:
      if (b.launch->checks & CHECK_SHARED) b.shadow.order.join_lanes(number, w.group);
      break;
    case SHUFFLE: wrong = shuffle(w, c.mode); break;
    case VOTE: vote(w, c.mode); break;
    case MATCH: match(w, c.mode); break;
    case REDUCE: reduce(w, c.mode); break;
    case LOAD_MATRIX:
      if (rows_are_fine(b, w, c)) load_matrix(w, c.n, c.mode);
      break;
    default: matrix_product(w, c);
  }
  if (wrong < 32)
    fail(w.lanes[wrong], UNDEFINED, first.line, 0, 0,
         "lane " + std::to_string(wrong) + " reads a lane that takes no part");
  w.each([&](u32 l, Thread&) { w.lanes[l].state = READY; });
}

// One collective for which all lanes have arrived.
bool run_collective(Block& b, u32 number) {
  Warp w = warp_of(b, number);
  u32 alive = ~lanes_in(w, EXITED) & (w.size == 32 ? ~0u : (1u << w.size) - 1);
  for (u32 l = 0; l < w.size; l++) {
    Fiber& f = w.lanes[l];
    if (f.state != AT_COLLECTIVE) continue;
    w.group = f.mask & alive;
    bool complete = true;
    w.each([&](u32 j, Thread&) {
      const Fiber& g = w.lanes[j];
      if (g.state != AT_COLLECTIVE || g.mask != f.mask || !same_instruction(f, g)) complete = false;
    });
    if (!complete) continue;
    execute(b, number, w, f);
    return true;
  }
  return false;
}

// Lanes that wait at one activemask, once no lane can run: those are together.
bool run_active_mask(Block& b, u32 number) {
  Warp w = warp_of(b, number);
  if (lanes_in(w, PAUSED)) return false;
  u32 line = 0;
  for (u32 l = 0; l < w.size; l++) {
    Fiber& f = w.lanes[l];
    if (f.state != AT_ACTIVE_MASK || (line && f.line != line)) continue;
    line = f.line;
    w.group |= 1u << l;
  }
  w.each([&](u32 l, Thread&) { w.lanes[l].result = w.group, w.lanes[l].state = READY; });
  return line != 0;
}

// Runs the warp until no lane can go on. True when anything happened.
bool run_warp(Block& b, u32 number) {
  Warp w = warp_of(b, number);
  bool happened = false;
  for (bool again = true; again;) {
    for (u32 l = 0; l < w.size; l++) {
      Fiber& f = w.lanes[l];
      if (f.state != READY) continue;
      happened = true;
      Context::change(b.scheduler, f.context);
      if (b.failed) return true;
    }
    again = run_collective(b, number) || (!b.failed && run_active_mask(b, number));
    if (b.failed) return true;
  }
  return happened;
}

// ---- barriers

bool all_here(Block& b, u32 id, std::vector<u32>* warps, u32* expected) {
  u32 count = (u32)b.fibers.size(), whole = 0;
  bool everyone = true;
  *expected = ~0u;
  for (u32 w = 0; w * 32 < count; w++) {
    bool some = false, all = true;
    for (u32 i = w * 32; i < min(count, w * 32 + 32); i++) {
      Fiber& f = b.fibers[i];
      if (f.state == EXITED) continue;
      bool here = f.state == AT_BARRIER && f.barrier == id;
      some |= here, all &= here;
      if (!here) continue;
      if (*expected != ~0u && *expected != f.expected) {
        fail(f, DIVERGENT, f.line, 0, 0, "threads at this barrier expect different counts");
        return false;
      }
      *expected = f.expected;
    }
    everyone &= all;
    if (some && all) warps->push_back(w), whole += 32;
  }
  if (warps->empty()) return false;
  return *expected ? whole >= *expected : everyone;
}

u32 reduction_of(Block& b, u32 id, u32 reduction) {
  u32 count = 0, arrived = 0;
  for (const Fiber& f : b.fibers)
    if (f.state == AT_BARRIER && f.barrier == id) arrived++, count += f.value;
  return reduction == 1 ? count : reduction == 2 ? count == arrived : count > 0;
}

bool release(Block& b, u32 id) {
  std::vector<u32> warps;
  u32 expected;
  if (!all_here(b, id, &warps, &expected)) return false;
  const Fiber* line_of_warp[32] = {};
  for (Fiber& f : b.fibers) {
    if (f.state != AT_BARRIER || f.barrier != id) continue;
    const Fiber*& first = line_of_warp[f.index / 32];
    if (!first) first = &f;
    if (f.aligned && first->line != f.line) {
      fail(f, DIVERGENT, f.line, 0, 0,
           "another lane of its warp is at the barrier of line " + std::to_string(first->line));
      return true;
    }
  }
  if (b.launch->checks & CHECK_SHARED) b.shadow.order.join_warps(warps);
  u32 results[4];
  for (u32 r = 1; r < 4; r++) results[r] = reduction_of(b, id, r);
  for (Fiber& f : b.fibers)
    if (f.state == AT_BARRIER && f.barrier == id)
      f.result = f.reduction ? results[f.reduction] : 0, f.state = READY;
  return true;
}

void run_block(Block& b) {
  u32 count = (u32)b.fibers.size();
  for (;;) {
    bool happened = false;
    for (u32 w = 0; w * 32 < count && !b.failed; w++) happened |= run_warp(b, w);
    u32 ids = 0;
    bool alive = false;
    Fiber* waiting_one = nullptr;
    for (Fiber& f : b.fibers) {
      if (f.state == PAUSED) f.state = READY, happened = true;
      if (f.state == AT_BARRIER) ids |= 1u << f.barrier;
      if (f.state != EXITED) alive = true, waiting_one = waiting_one ? waiting_one : &f;
    }
    if (b.failed || !alive) return;
    for (u32 id = 0; id < 16 && !b.failed; id++)
      if (ids >> id & 1) happened |= release(b, id);
    if (b.failed) return;
    if (!happened) {
      fail(*waiting_one, DEADLOCK, waiting_one->line, 0, 0, waiting(b));
      return;
    }
  }
}

}  // namespace

// Runs all blocks; 0, or the kind of the fault that *report tells.
extern "C" __attribute__((visibility("default"))) u32 ptx_launch(const Launch* launch, Report* report) {
  u64 blocks = (u64)launch->grid.x * launch->grid.y * launch->grid.z;
  std::atomic<u64> next{0};
  std::atomic<bool> failed{false};
  std::mutex lock;
  report->kind = 0;
  auto work = [&] {
    static thread_local Block block;
    Report mine;
    block.report = &mine;
    for (u64 n; !failed && (n = next++) < blocks;) {
      prepare(block, *launch, (u32)n);
      run_block(block);
      if (!block.failed) continue;
      std::lock_guard<std::mutex> guard(lock);
      if (!failed.exchange(true)) *report = mine;
    }
  };
  if (launch->workers <= 1) {
    work();
  } else {
    std::vector<std::thread> threads;
    for (u32 i = 0; i < launch->workers && i < blocks; i++) threads.emplace_back(work);
    for (std::thread& t : threads) t.join();
  }
  return report->kind;
}

extern "C" __attribute__((visibility("default"))) void ptx_layout(u64* sizes) {
  sizes[0] = sizeof(Launch), sizes[1] = sizeof(Report), sizes[2] = sizeof(Allocation);
}

}  // namespace ptx
