// A stand-in for libcuda: memory is the heap, a launch runs the emulated kernel at once, and a graph is a list
// of launches. `KERNELS` is the table of kernels by name. Memory is no number until it is written, and writing beyond its end aborts.
//
// STANDIN_CARDS: how many cards there are. STANDIN_MEMORY: bytes of a card. STANDIN_WRONG: a kernel that does
// nothing.
#include <cstdio>
#define API extern "C" int
typedef unsigned long long u64;

static const size_t BEHIND = 256;
static std::map<u64, size_t> sizes;
static std::mutex of_sizes;
static char handle;

static u64 setting(const char* name, u64 otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}

// What has been launched while a thread records.
using Launches = std::vector<std::function<void()>>;
static thread_local Launches* recording = nullptr;

// Does it, or notes it for later.
extern "C" void standin_do(std::function<void()>* launch) {
  if (recording) recording->push_back(*launch);
  else (*launch)();
}

API cuInit(unsigned) { return setting("STANDIN_CARDS", 1) ? 0 : 100; }
API cuDriverGetVersion(int* version) { *version = 13000; return 0; }
API cuDeviceGetCount(int* n) { *n = setting("STANDIN_CARDS", 1); return 0; }
API cuDeviceGet(int* device, int index) { *device = index; return 0; }
API cuDeviceGetName(char* text, int n, int device) { snprintf(text, n, "stand-in %d", device); return 0; }
// 75 and 76 are the compute capability.
API cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? 9 : 0; return 0; }
API cuDeviceTotalMem_v2(size_t* n, int) { *n = setting("STANDIN_MEMORY", 4000000000); return 0; }
API cuDevicePrimaryCtxRetain(void** context, int) { *context = &handle; return 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuStreamCreate(void** stream, unsigned) { *stream = &handle; return 0; }
API cuStreamSynchronize(void*) { return 0; }
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  cuDeviceTotalMem_v2(total, 0);
  *free = *total;
  return 0;
}
API cuMemAlloc_v2(u64* at, size_t n) {
  if (n > setting("STANDIN_MEMORY", 4000000000)) return 2;
  char* memory = (char*)aligned_alloc(256, (n + 255) / 256 * 256 + BEHIND);
  memset(memory, 0xff, n + BEHIND);
  std::lock_guard<std::mutex> guard(of_sizes);
  *at = (u64)memory;
  sizes[*at] = n;
  return 0;
}
API cuMemFree_v2(u64 at) {
  std::lock_guard<std::mutex> guard(of_sizes);
  const unsigned char* behind = (unsigned char*)at + sizes.at(at);
  for (size_t i = 0; i < BEHIND; i++)
    if (behind[i] != 0xff) { fprintf(stderr, "something has written beyond %zu bytes\n", sizes.at(at)); abort(); }
  sizes.erase(at);
  free((void*)at);
  return 0;
}
API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t n, void*) { memcpy((void*)to, from, n); return 0; }
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t n, void*) { memcpy(to, (void*)from, n); return 0; }
API cuMemsetD8Async(u64 at, unsigned char value, size_t n, void*) {
  std::function<void()> set = [=] { memset((void*)at, value, n); };
  standin_do(&set);
  return 0;
}
API cuModuleLoadData(void** module, const void*) { *module = &handle; return 0; }
API cuModuleGetFunction(void** function, void*, const char* name) {
  auto found = KERNELS.find(name);
  if (found == KERNELS.end()) return 500;
  *function = (void*)&*found;
  return 0;
}
API cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*, void** arguments, void**) {
  auto* kernel = (decltype(KERNELS)::value_type*)function;
  const char* wrong = getenv("STANDIN_WRONG");
  if (wrong && kernel->first == wrong) return 0;
  std::function<void()> thread = kernel->second(arguments), launch = [=] { emulate::launch(x, y, threads, thread); };
  standin_do(&launch);
  return 0;
}
API cuStreamBeginCapture_v2(void*, int) { recording = new Launches; return 0; }
API cuStreamEndCapture(void*, void** graph) { *graph = recording; recording = nullptr; return 0; }
API cuGraphInstantiateWithFlags(void** launches, void* graph, u64) { *launches = new Launches(*(Launches*)graph); return 0; }
API cuGraphDestroy(void* graph) { delete (Launches*)graph; return 0; }
API cuGraphExecDestroy(void* launches) { delete (Launches*)launches; return 0; }
API cuGraphLaunch(void* launches, void*) {
  for (auto& launch : *(Launches*)launches) launch();
  return 0;
}
API cuGetErrorName(int, const char** text) { *text = "an error of the stand-in"; return 0; }
API cuGetErrorString(int, const char** text) { *text = "an error of the stand-in"; return 0; }
