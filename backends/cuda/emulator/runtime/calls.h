// The functions that kernels call, and how a fault is told. They run on the thread's own stack and
// go back to the scheduler by leave().
#pragma once
#include <cstdio>

#include "block.h"

namespace ptx {
namespace {

void fail(Fiber& f, u32 kind, u32 line, u64 address, u64 bytes, const std::string& text) {
  Block& b = *f.block;
  if (b.failed) return;
  b.failed = true;
  Report& r = *b.report;
  r.kind = kind, r.line = line, r.address = address, r.bytes = bytes;
  const Dim &p = b.position, &t = f.thread.tid;
  r.block[0] = p.x, r.block[1] = p.y, r.block[2] = p.z;
  r.thread[0] = t.x, r.thread[1] = t.y, r.thread[2] = t.z;
  snprintf(r.text, sizeof r.text, "%s", text.c_str());
}
[[noreturn]] void stop(Fiber& f, u32 kind, u32 line, u64 address, u64 bytes,
                       const std::string& text = "") {
  fail(f, kind, line, address, bytes, text);
  leave(f, EXITED);
  __builtin_unreachable();
}
std::string place(const Dim& d) {
  char text[64];
  snprintf(text, sizeof text, "(%u, %u, %u)", d.x, d.y, d.z);
  return text;
}
std::string thread_name(const Block& b, u32 index) {
  return "thread " + place(b.fibers[index].thread.tid);
}

// "thread (0, 0, 0) and 31 more wait at line 12 for bar.sync 0"
std::string waiting(const Block& b) {
  std::string text;
  std::vector<bool> told(b.fibers.size(), false);
  for (u32 i = 0; i < b.fibers.size(); i++) {
    const Fiber& f = b.fibers[i];
    if (told[i] || f.state == EXITED) continue;
    u32 others = 0;
    for (u32 j = i; j < b.fibers.size(); j++) {
      const Fiber& g = b.fibers[j];
      bool same = g.state == f.state && g.line == f.line && g.mask == f.mask;
      if (f.state == AT_BARRIER) same = same && g.barrier == f.barrier;
      if (same) told[j] = true, others++;
    }
    char what[160];
    if (f.state == AT_BARRIER)
      snprintf(what, sizeof what, "barrier %u", f.barrier);
    else
      snprintf(what, sizeof what, "%s, lanes 0x%08x", f.collective ? f.collective->name : "", f.mask);
    text += "\n  " + thread_name(b, i) + " and " + std::to_string(others - 1) +
            " more wait at line " + std::to_string(f.line) + " for " + what;
  }
  u32 exited = 0;
  for (const Fiber& f : b.fibers) exited += f.state == EXITED;
  if (exited) text += "\n  " + std::to_string(exited) + " threads have exited";
  return text;
}

void on_fault(Thread* t, u32 kind, u32 line, u64 address, u64 bytes) {
  stop(fiber_of(t), kind, line, address, bytes);
}
void on_collective(Thread* t, const Collective* c, u32 mask, u32 line) {
  Fiber& f = fiber_of(t);
  if (!(mask >> t->lane & 1))
    stop(f, DIVERGENT, line, 0, 0, "lane " + std::to_string(t->lane) + " is not in its own mask");
  f.collective = c, f.mask = mask, f.line = line;
  leave(f, AT_COLLECTIVE);
}
u32 on_active_mask(Thread* t, u32 line) {
  Fiber& f = fiber_of(t);
  f.line = line, f.mask = 0, f.collective = nullptr;
  leave(f, AT_ACTIVE_MASK);
  return f.result;
}
u32 on_barrier(Thread* t, u32 id, u32 count, u32 aligned, u32 reduction, u32 value, u32 line) {
  Fiber& f = fiber_of(t);
  if (id > 15) stop(f, UNDEFINED, line, 0, 0, "there are barriers 0 to 15");
  if (count % 32) stop(f, UNDEFINED, line, 0, 0, "a barrier counts whole warps");
  f.barrier = id, f.expected = count, f.aligned = aligned, f.reduction = reduction;
  f.value = value, f.line = line, f.mask = 0, f.collective = nullptr;
  leave(f, AT_BARRIER);
  return f.result;
}
void on_pause(Thread* t, u32 line) {
  Fiber& f = fiber_of(t);
  f.branches += 65536;
  if (f.branches > f.block->launch->branches) stop(f, RUNAWAY, line, 0, f.branches);
  t->fuel = 65536;
  f.line = line;
  leave(f, PAUSED);
}

const char* clash_text(Verdict v) {
  switch (v) {
    case READ_WRITE: return "writes what is read by ";
    case WRITE_WRITE: return "writes what is written by ";
    case WRITE_READ: return "reads what is written by ";
    default: return "uses what a cp.async still writes, issued by ";
  }
}
void check_shared(Fiber& f, u32 address, u32 bytes, u32 access, u32 line) {
  Clash other;
  Verdict v = f.block->shadow.access(address, bytes, access, f.index, line, &other);
  if (v == FINE) return;
  u64 at = SHARED_WINDOW + address;
  if (v == NEVER_WRITTEN) {
    fail(f, UNINITIALISED, line, at, bytes, "");
    return;
  }
  std::string text = clash_text(v) + thread_name(*f.block, other.thread);
  if (other.line) text += " at line " + std::to_string(other.line);
  fail(f, RACE, line, at, bytes, text);
}
void on_shared_access(Thread* t, u32 address, u32 bytes, u32 access, u32 line) {
  Fiber& f = fiber_of(t);
  check_shared(f, address, bytes, access, line);
  if (f.block->failed) leave(f, EXITED);
}

// Blocks in any order: what one writes no other may use in the same launch.
bool block_race(Touched& seen, u32 me, u32 access, u32* other) {
  u32 writer = seen.writer & ~ATOMIC;
  bool atomic = access == ATOMIC_ACCESS && (seen.writer & ATOMIC);
  *other = writer;
  if (writer && writer != me && !atomic) return true;
  if (access == READ) {
    seen.reader = seen.reader == 0 || seen.reader == me ? me : SEVERAL;
    return false;
  }
  *other = seen.reader;
  if (seen.reader && seen.reader != me) return true;
  if (writer && writer != me) me = SEVERAL;
  seen.writer = me | (access == ATOMIC_ACCESS ? ATOMIC : 0);
  return false;
}
std::string block_name(const Launch& l, u32 number) {
  if (number == SEVERAL) return "several blocks";
  u32 n = number - 1;
  return "block " + place({n % l.grid.x, n / l.grid.x % l.grid.y, n / (l.grid.x * l.grid.y)});
}
void on_global_access(Thread* t, Allocation* a, u64 offset, u32 bytes, u32 access, u32 line) {
  Fiber& f = fiber_of(t);
  u64 address = ((FIRST_SLOT + (u64)(a - t->allocations)) << SLOT_BITS) + offset;
  if (a->written) {
    if (access != WRITE && memchr(a->written + offset, 0, bytes))
      stop(f, UNINITIALISED, line, address, bytes);
    memset(a->written + offset, 1, bytes);
  }
  if (a->touched)
    for (u64 i = offset; i < offset + bytes; i++) {
      u32 other;
      if (block_race(a->touched[i], f.block->number + 1, access, &other))
        stop(f, BLOCK_RACE, line, address, bytes, block_name(*f.block->launch, other));
    }
}

void on_copy_async(Thread* t, u32 to, const u8* from, u32 bytes, u32 given, u32) {
  Fiber& f = fiber_of(t);
  Copy copy = {to, bytes, {}};
  if (given) memcpy(copy.data, from, given);
  f.open.push_back(copy);
  if (t->checks & CHECK_SHARED) f.block->shadow.set_flight(to, bytes, f.index, true);
}
void on_commit(Thread* t) {
  Fiber& f = fiber_of(t);
  f.groups.push_back(std::move(f.open));
  f.open.clear();
}
void on_wait(Thread* t, u32 pending) {
  Fiber& f = fiber_of(t);
  while (f.groups.size() > pending) {
    for (const Copy& copy : f.groups.front()) {
      memcpy(t->shared + copy.to, copy.data, copy.bytes);
      if (t->checks & CHECK_SHARED) f.block->shadow.set_flight(copy.to, copy.bytes, f.index, false);
    }
    f.groups.erase(f.groups.begin());
  }
}

const Runtime RUNTIME = {on_fault,         on_collective,    on_active_mask, on_barrier,
                         on_shared_access, on_global_access, on_copy_async,  on_commit,
                         on_wait,          on_pause};

}  // namespace
}  // namespace ptx
