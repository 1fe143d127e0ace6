// A stack of its own for every thread of a block, and the switch between two of them.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace ptx {

#if defined(__x86_64__) && !defined(PTX_UCONTEXT)
// Saves what a callee must keep, on the stack that is left, and takes it from the other.
extern "C" void ptx_switch(void** from, void* to);
asm(R"(
.text
.local ptx_switch
.type ptx_switch,@function
ptx_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ptx_switch, .-ptx_switch
.local ptx_begin
.type ptx_begin,@function
ptx_begin:
  movq %rbx, %rdi
  callq *%r12
  ud2
.size ptx_begin, .-ptx_begin
)");
extern "C" void ptx_begin();

struct Context {
  void* stack_pointer = nullptr;
  // The first switch to it calls entry(argument), which never returns.
  void start(char* stack, size_t size, void (*entry)(void*), void* argument) {
    void** top = (void**)(((uintptr_t)stack + size) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = nullptr;
    *--top = (void*)ptx_begin;
    *--top = nullptr;       // rbp
    *--top = argument;      // rbx
    *--top = (void*)entry;  // r12
    for (int i = 13; i <= 15; i++) *--top = nullptr;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) {
    ptx_switch(&from.stack_pointer, to.stack_pointer);
  }
};
#else
struct Context {
  ucontext_t context;
  void (*entry)(void*);
  void* argument;
  static void begin(unsigned high, unsigned low) {
    Context* self = (Context*)((uintptr_t)high << 32 | low);
    self->entry(self->argument);
  }
  void start(char* stack, size_t size, void (*function)(void*), void* given) {
    entry = function, argument = given;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    uintptr_t self = (uintptr_t)this;
    makecontext(&context, (void (*)())begin, 2, (unsigned)(self >> 32), (unsigned)self);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

// Room for many stacks; pages cost memory once they are used.
class Stacks {
 public:
  ~Stacks() { if (base_) munmap(base_, bytes_); }
  void reserve(size_t count, size_t size) {
    if (count * size <= bytes_) { size_ = size; return; }
    if (base_) munmap(base_, bytes_);
    bytes_ = count * size;
    void* got = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) { base_ = nullptr, bytes_ = 0; throw std::bad_alloc(); }
    base_ = (char*)got;
    size_ = size;
  }
  char* of(size_t index) { return base_ + index * size_; }
  size_t size() const { return size_; }

 private:
  char* base_ = nullptr;
  size_t bytes_ = 0, size_ = 0;
};

}  // namespace ptx
