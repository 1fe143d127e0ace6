// Who touched which byte of shared memory, and whether a barrier lies between.
//
// Time is a counter of each warp that its barriers and bar.warp.syncs advance. A warp knows, of every
// other warp, before which time of that one all its accesses are ordered before the own next one
// (Order::warps); a lane knows the same of the lanes of its warp (Order::lanes). An access at time
// s by someone is ordered before one's own exactly when what one knows of them is above s.
#pragma once
#include <array>
#include <unordered_map>
#include <vector>

#include "ptx.h"

namespace ptx {

struct Order {
  u32 start = 0;  // of this block; older records are of other blocks
  u32 count = 0;
  std::vector<u32> now;    // of each warp
  std::vector<u32> warps;  // [observer][observed]
  std::vector<u32> lanes;  // [thread][lane]

  void begin(u32 warp_count) {
    for (u32 time : now) start = max(start, time);
    start++;
    count = warp_count;
    now.assign(count, start);
    warps.assign(count * count, 0);
    lanes.assign(count * 32 * 32, 0);
  }
  u32 time_of(u32 thread) const { return now[thread / 32]; }
  bool before(u32 other, u32 time, u32 me) const {
    if (other == me) return true;
    if (warps[me / 32 * count + other / 32] > time) return true;
    return other / 32 == me / 32 && lanes[me * 32 + other % 32] > time;
  }
  // All threads of these warps met: what one of them knew, all know now.
  void join_warps(const std::vector<u32>& members) {
    std::vector<u32> known(count, 0);
    for (u32 w : members)
      for (u32 i = 0; i < count; i++) known[i] = max(known[i], warps[w * count + i]);
    for (u32 w : members) known[w] = ++now[w];
    for (u32 w : members) memcpy(&warps[w * count], known.data(), count * sizeof(u32));
  }
  void join_lanes(u32 warp, u32 mask) {
    u32 time = ++now[warp], known[32] = {};
    for (u32 l = 0; l < 32; l++)
      if (mask >> l & 1)
        for (u32 i = 0; i < 32; i++) known[i] = max(known[i], lanes[(warp * 32 + l) * 32 + i]);
    for (u32 l = 0; l < 32; l++)
      if (mask >> l & 1) known[l] = time;
    for (u32 l = 0; l < 32; l++)
      if (mask >> l & 1) memcpy(&lanes[(warp * 32 + l) * 32], known, sizeof known);
  }
};

// The last write of a byte, and who read it since: the lanes of the warp that read last (near), and
// the last thread of another warp (far). Older readers are forgotten when others come; between two
// barriers of the whole block nothing is lost, with barriers of parts a race may go unseen.
struct Record {
  u32 write_time = 0, near_time = 0, far_time = 0, near_lanes = 0;
  u32 write_line = 0, read_line = 0;
  u16 writer = 0, near_warp = 0, far = 0;
  u8 atomic = 0, in_flight = 0;
};

enum Verdict : u32 { FINE, NEVER_WRITTEN, READ_WRITE, WRITE_WRITE, WRITE_READ, IN_FLIGHT };

// Atomic changes of a word since its last write: the last one, and the last of another thread.
struct Change { u32 time, line, thread; };
typedef std::array<Change, 2> Changes;

struct Clash { u32 thread, line; };

class Shadow {
 public:
  Order order;

  void begin(u32 bytes, u32 warp_count) {
    order.begin(warp_count);
    if (words_.size() * 4 < bytes) {
      words_.resize((bytes + 3) / 4);
      bytes_.resize(words_.size() * 4);
      split_.resize(words_.size());
    }
    std::fill(split_.begin(), split_.end(), 0);
    changes_.clear();
  }

  // Checks and notes an access; `other` is set to what it clashes with. A word has one
  // record until a part of it is accessed alone.
  Verdict access(u32 address, u32 size, u32 access, u32 thread, u32 line, Clash* other) {
    u32 end = address + size;
    for (u32 word = address / 4; word * 4 < end; word++) {
      u32 from = max(address, word * 4), to = min(end, word * 4 + 4);
      bool whole = to - from == 4;
      if (!whole && !split_[word]) {
        for (u32 i = 0; i < 4; i++) bytes_[word * 4 + i] = words_[word];
        split_[word] = 1;
      }
      if (!split_[word]) {
        if (Verdict v = one(words_[word], word, access, thread, line, other)) return v;
        continue;
      }
      for (u32 byte = from; byte < to; byte++)
        if (Verdict v = one(bytes_[byte], word, access, thread, line, other)) return v;
      if (whole && access == WRITE) words_[word] = bytes_[word * 4], split_[word] = 0;
    }
    return FINE;
  }
  // Marks bytes that a cp.async of `thread` writes, or (flight false) has written.
  void set_flight(u32 address, u32 size, u32 thread, bool flight) {
    for (u32 word = address / 4; word * 4 < address + size; word++)
      for (u32 i = 0; i < (split_[word] ? 4 : 1); i++) {
        Record& r = split_[word] ? bytes_[word * 4 + i] : words_[word];
        r.in_flight = flight;
        r.writer = (u16)thread;
        r.write_time = order.time_of(thread);
      }
  }

 private:
  std::vector<Record> words_, bytes_;
  std::vector<u8> split_;
  std::unordered_map<u32, Changes> changes_;  // of words

  Verdict one(Record& r, u32 word, u32 access, u32 me, u32 line, Clash* other) {
    bool written = r.write_time >= order.start;
    *other = {r.writer, r.write_line};
    if (written && r.in_flight) return IN_FLIGHT;
    if (written && !order.before(r.writer, r.write_time, me))
      return access == READ ? WRITE_READ : WRITE_WRITE;
    if (!written && access != WRITE) return NEVER_WRITTEN;
    if (written && r.atomic && access != ATOMIC_ACCESS)
      for (const Change& c : changes_[word]) {
        *other = {c.thread, c.line};
        if (c.time >= order.start && !order.before(c.thread, c.time, me))
          return access == READ ? WRITE_READ : WRITE_WRITE;
      }
    if (access == READ) return note_read(r, me, line);
    if (Verdict v = against_readers(r, me, other)) return v;
    if (access == ATOMIC_ACCESS) {
      note_change(changes_[word], me, line);
      r.atomic = 1;
      return FINE;
    }
    r.write_time = order.time_of(me), r.writer = (u16)me, r.atomic = 0;
    r.write_line = line, r.in_flight = 0, r.near_time = r.far_time = 0, r.near_lanes = 0;
    return FINE;
  }
  void note_change(Changes& changes, u32 me, u32 line) {
    if (changes[0].thread != me) changes[1] = changes[0];
    changes[0] = {order.time_of(me), line, me};
  }
  Verdict note_read(Record& r, u32 me, u32 line) {
    r.read_line = line;
    u32 warp = me / 32, bit = 1u << me % 32;
    if (r.near_time == order.time_of(me) && r.near_warp == warp) {
      r.near_lanes |= bit;
      return FINE;
    }
    if (r.near_time >= order.start && r.near_lanes && r.near_warp != warp) {
      r.far_time = r.near_time;
      r.far = (u16)(r.near_warp * 32 + __builtin_ctz(r.near_lanes));
    }
    r.near_time = order.time_of(me), r.near_warp = (u16)warp, r.near_lanes = bit;
    return FINE;
  }
  Verdict against_readers(const Record& r, u32 me, Clash* other) {
    if (r.near_time >= order.start)
      for (u32 lanes = r.near_lanes; lanes; lanes &= lanes - 1) {
        *other = {r.near_warp * 32u + (u32)__builtin_ctz(lanes), r.read_line};
        if (!order.before(other->thread, r.near_time, me)) return READ_WRITE;
      }
    *other = {r.far, r.read_line};
    if (r.far_time >= order.start && !order.before(r.far, r.far_time, me)) return READ_WRITE;
    return FINE;
  }
};

}  // namespace ptx
