// A stand-in for NVIDIA's driver, for tests: libcuda.so.1 as far as TVM's CUDA runtime calls it.
//
// Device memory is host memory that nobody may touch: its pages are opened while a copy or a launch
// runs, so code on the host that reads a device pointer ends the process. It is filled with a
// pattern, not with zeros. A launch goes to a callback. What happened is counted.
//
// No header of CUDA is needed: types and numbers are those of its C interface.
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

namespace {
constexpr size_t kPage = 4096;
enum Result { kOk = 0, kInvalidValue = 1, kInvalidImage = 200, kNoBinary = 209, kNotFound = 500,
              kLaunchFailed = 719 };

struct Module { const char* image; bool ptx; };
struct Function { Module* module; std::string name; };
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};
using Callback = int (*)(const char* image, int ptx, const char* name, const unsigned* grid,
                         const unsigned* block, unsigned shared, void** arguments, void* stream);

std::map<uintptr_t, size_t> memory;  // what was asked for, by address
Callback callback = nullptr;
long counts[8];

size_t pages(size_t size) { return (size + kPage - 1) / kPage * kPage; }

void open(bool on) {
  for (auto& [address, size] : memory)
    mprotect(reinterpret_cast<void*>(address), pages(size), on ? PROT_READ | PROT_WRITE : PROT_NONE);
}

bool on_device(const void* pointer, size_t size) {
  auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return false;
  auto [start, length] = *std::prev(after);
  return address + size <= start + length;
}

int number(const char* name, int otherwise) {
  const char* given = std::getenv(name);
  return given ? std::atoi(given) : otherwise;
}

bool has_function(const Module& module, const char* name) {
  if (module.ptx) return std::strstr(module.image, (std::string(".entry ") + name + "(").c_str());
  // The names of a cubin's sections hold .text.NAME; the image ends with its section headers.
  uint64_t table;
  uint16_t size, count;
  std::memcpy(&table, module.image + 0x28, 8);
  std::memcpy(&size, module.image + 0x3a, 2);
  std::memcpy(&count, module.image + 0x3c, 2);
  std::string wanted = std::string("\0.text.", 7) + name + std::string("\0", 1);
  std::string all(module.image, table + size * count);
  return all.find(wanted) != std::string::npos;
}
}  // namespace

extern "C" {
// What tests ask for.
enum Count { kLaunches, kSynchronizations, kAllocations, kFrees, kToDevice, kToHost, kOnDevice,
             kModules };
long stub_count(int what) { return counts[what]; }
void stub_set_callback(Callback given) { callback = given; }

// What libcudart calls.
int stub_capability() { return number("STUB_CAPABILITY", 80); }
int stub_devices() { return number("STUB_DEVICES", 1); }
void stub_add(int what) { ++counts[what]; }

int stub_allocate(void** pointer, size_t size) {
  void* made = mmap(nullptr, pages(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED) return 2;
  std::memset(made, 0xCD, pages(size));
  mprotect(made, pages(size), PROT_NONE);
  memory[reinterpret_cast<uintptr_t>(made)] = size;
  *pointer = made;
  ++counts[kAllocations];
  return kOk;
}

int stub_free(void* pointer) {
  auto found = memory.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == memory.end()) return kInvalidValue;
  munmap(pointer, pages(found->second));
  memory.erase(found);
  ++counts[kFrees];
  return kOk;
}

int stub_copy(void* to, const void* from, size_t size, int kind) {  // cudaMemcpyKind
  bool from_device = kind == 2 || kind == 3, to_device = kind == 1 || kind == 3;
  if (from_device != on_device(from, size) || to_device != on_device(to, size)) return kInvalidValue;
  ++counts[kind == 1 ? kToDevice : kind == 2 ? kToHost : kOnDevice];
  open(true);
  std::memcpy(to, from, size);
  open(false);
  return kOk;
}

// The driver's interface.
int cuDriverGetVersion(int* version) { *version = number("STUB_DRIVER", 13000); return kOk; }
int cuGetErrorName(int, const char** text) { *text = "STUB_ERROR"; return kOk; }
int cuGetErrorString(int, const char** text) { *text = "an error of the stub driver"; return kOk; }

int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "stub", length);
  return kOk;
}

int cuModuleLoadData(void** module, const void* image) {
  auto text = static_cast<const char*>(image);
  bool cubin = std::memcmp(text, "\x7f" "ELF", 4) == 0;
  bool ptx = !cubin && std::strstr(text, ".version");
  if (!cubin && !ptx) return kInvalidImage;
  if (cubin) {
    uint32_t flags;  // of the ELF header; the architecture is in its second byte
    std::memcpy(&flags, text + 0x30, 4);
    int built = flags >> 8 & 0xff, here = stub_capability();
    if (built / 10 != here / 10 || built > here) return kNoBinary;
  }
  *module = new Module{text, ptx};
  ++counts[kModules];
  return kOk;
}
int cuModuleUnload(void* module) { delete static_cast<Module*>(module); return kOk; }

int cuModuleGetFunction(void** function, void* module, const char* name) {
  auto in = static_cast<Module*>(module);
  if (!has_function(*in, name)) return kNotFound;
  *function = new Function{in, name};
  return kOk;
}
int cuFuncSetAttribute(void*, int, int) { return kOk; }
int cuTensorMapEncodeTiled() { return kInvalidValue; }

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
  auto launched = static_cast<Function*>(function);
  ++counts[kLaunches];
  if (!callback) return kLaunchFailed;
  open(true);
  int failed = callback(launched->module->image, launched->module->ptx, launched->name.c_str(),
                        config->grid, config->block, config->shared, arguments, config->stream);
  open(false);
  return failed ? kLaunchFailed : kOk;
}
}
