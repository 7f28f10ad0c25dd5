// A stand-in for libnvrtc: there is nothing to compile, the kernels are in the stand-in for libcuda.
#include <cstddef>
#define API extern "C" int
static char program;
static const char TEXT[] = "stand-in";
API nvrtcCreateProgram(void** made, const char*, const char*, int, const char* const*, const char* const*) { *made = &program; return 0; }
API nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
API nvrtcGetPTXSize(void*, size_t* n) { *n = sizeof TEXT; return 0; }
API nvrtcGetPTX(void*, char* text) { for (size_t i = 0; i < sizeof TEXT; i++) text[i] = TEXT[i]; return 0; }
API nvrtcGetProgramLogSize(void*, size_t* n) { *n = 1; return 0; }
API nvrtcGetProgramLog(void*, char* text) { *text = 0; return 0; }
API nvrtcDestroyProgram(void**) { return 0; }
API nvrtcGetErrorString(int) { return 0; }
