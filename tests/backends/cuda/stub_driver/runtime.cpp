// A stand-in for NVIDIA's runtime library, for tests: libcudart.so.13 as far as TVM's CUDA runtime
// calls it, on top of the driver beside it.
#include <cstddef>
#include <cstdlib>
#include <cstring>

extern "C" {
int stub_capability();
long stub_count(int what);
int stub_devices();
void stub_add(int what);
int stub_allocate(void** pointer, size_t size);
int stub_free(void* pointer);
int stub_copy(void* to, const void* from, size_t size, int kind);
}

namespace {
constexpr int kSynchronizations = 1;
struct Event { long launches; void* stream; bool reached; };
thread_local int device = 0;

int synchronized() { stub_add(kSynchronizations); return 0; }
[[noreturn]] int absent() { std::abort(); }
}  // namespace

extern "C" {
int cudaGetDeviceCount(int* count) { *count = stub_devices(); return *count ? 0 : 100; }
int cudaGetDevice(int* number) { *number = device; return 0; }
int cudaSetDevice(int number) {
  if (number >= stub_devices()) return 101;
  device = number;
  return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {  // cudaDeviceAttr
  switch (attribute) {
    case 75: *value = stub_capability() / 10; break;
    case 76: *value = stub_capability() % 10; break;
    case 10: *value = 32; break;     // threads of a warp
    case 8: *value = 49152; break;   // shared memory of a block
    case 12: *value = 65536; break;  // registers of a block
    case 16: *value = 1; break;      // multiprocessors
    default: *value = 1024;
  }
  return 0;
}
int cudaGetDeviceProperties(char* properties, int) {
  size_t size = size_t{1} << 30;
  std::memcpy(properties + 288, &size, sizeof size);  // totalGlobalMem
  return 0;
}
const char* cudaGetErrorName(int) { return "STUB_ERROR"; }
const char* cudaGetErrorString(int) { return "an error of the stub runtime"; }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }

int cudaMalloc(void** pointer, size_t size) { return stub_allocate(pointer, size); }
int cudaFree(void* pointer) { return stub_free(pointer); }
int cudaMallocHost(void** pointer, size_t size) { *pointer = std::malloc(size); return 0; }
int cudaFreeHost(void* pointer) { std::free(pointer); return 0; }
int cudaMemGetInfo(size_t* left, size_t* all) { *left = *all = size_t{1} << 30; return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void*) {
  return stub_copy(to, from, size, kind);
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void*) {
  return stub_copy(to, from, size, 3);
}

int cudaStreamCreate(void** stream) { *stream = std::malloc(1); return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { std::free(stream); return 0; }
int cudaStreamSynchronize(void*) { return synchronized(); }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
// Time is the number of launches, in milliseconds. An event is there once somebody waited for it.
int cudaEventCreate(void** event) { *event = new Event{}; return 0; }
int cudaEventDestroy(void* event) { delete static_cast<Event*>(event); return 0; }
int cudaEventRecord(void* event, void* stream) {
  *static_cast<Event*>(event) = {stub_count(0), stream, false};
  return 0;
}
int cudaEventSynchronize(void* event) {
  static_cast<Event*>(event)->reached = true;
  return synchronized();
}
int cudaEventElapsedTime(float* milliseconds, void* from, void* to) {
  auto start = static_cast<Event*>(from), end = static_cast<Event*>(to);
  if (!end->reached) return 600;  // cudaErrorNotReady
  if (start->stream != end->stream) return 400;
  *milliseconds = end->launches - start->launches;
  return 0;
}

int cudaGraphDestroy(void*) { absent(); }
int cudaGraphExecDestroy(void*) { absent(); }
int cudaGraphInstantiate(void**, void*, unsigned long long) { absent(); }
int cudaGraphLaunch(void*, void*) { absent(); }
int cudaStreamBeginCapture(void*, int) { absent(); }
int cudaStreamEndCapture(void*, void**) { absent(); }
}
