// A stand-in for libcublasLt: products of f32 matrices that lie column by column, with a bias. It goes
// through the stand-in for libcuda, which may be recording.
//
// It has three algorithms, of which the last one sums in f32 and rounds otherwise.
//
// STANDIN_WRONG=products: each is a hundredth too large. STANDIN_SLOW: an algorithm that takes its time.
// STANDIN_VERSION: its version.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <unistd.h>
#include <vector>
#define API extern "C" int

// Kinds of cublasComputeType_t; the others round factors to bf16 and to TF32.
enum { F32 = 68, FAST_BF16 = 75, FAST_TF32 = 77 };
struct Layout { uint64_t rows, columns; int64_t stride; };
struct Description { int compute, transposed_a = 0, transposed_b = 0; uint32_t epilogue = 1; const float* bias = nullptr; };
struct Algorithm { uint64_t data[8]; };
struct Found { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

extern "C" size_t cublasLtGetVersion() {
  const char* version = getenv("STANDIN_VERSION");
  return version ? strtoull(version, nullptr, 10) : 130000;
}
API cublasLtCreate(void** handle) { *handle = malloc(1); return 0; }
API cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (type != 0) return 15;
  *layout = new Layout{rows, columns, stride};
  return 0;
}
API cublasLtMatmulDescCreate(Description** description, int compute, int) {
  if (compute != F32 && compute != FAST_BF16 && compute != FAST_TF32) return 15;
  *description = new Description{compute};
  return 0;
}
API cublasLtMatmulDescSetAttribute(Description* to, int attribute, const void* from, size_t n) {
  switch (attribute) {
    case 3: memcpy(&to->transposed_a, from, n); return 0;
    case 4: memcpy(&to->transposed_b, from, n); return 0;
    case 7: memcpy(&to->epilogue, from, n); return 0;
    case 8: memcpy(&to->bias, from, n); return 0;
  }
  return 7;
}
API cublasLtMatmulPreferenceCreate(void** preference) { *preference = malloc(1); return 0; }
API cublasLtMatmulPreferenceDestroy(void* preference) { free(preference); return 0; }
API cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
API cublasLtMatmulAlgoGetHeuristic(void*, Description*, Layout*, Layout*, Layout*, Layout*, void*, int most, Found* found, int* count) {
  *count = most < 3 ? most : 3;
  for (int i = 0; i < *count; i++) {
    found[i] = {};
    found[i].algorithm.data[0] = i;
  }
  return 0;
}

// A factor, rounded to the nearest number of 8 or 11 bits where that is asked for.
static float factor(float v, int compute) {
  if (compute == F32) return v;
  uint32_t bits, lost = compute == FAST_BF16 ? 16 : 13;
  memcpy(&bits, &v, 4);
  bits = (bits + (1u << (lost - 1)) - 1 + (bits >> lost & 1)) >> lost << lost;
  memcpy(&v, &bits, 4);
  return v;
}

// [rows][columns], whichever way it lies.
static std::vector<float> matrix(const float* from, Layout lies, bool turned, size_t rows, size_t columns, int compute) {
  std::vector<float> to(rows * columns);
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < columns; j++) to[i * columns + j] = factor(turned ? from[j + i * lies.stride] : from[i + j * lies.stride], compute);
  return to;
}

API cublasLtMatmul(void*, Description* description, const float* alpha, const float* a, Layout* of_a, const float* b, Layout* of_b, const float* beta, const float* c, Layout* of_c, float* d, Layout* of_d, const Algorithm* algorithm, void*, size_t, void*) {
  const char* wrong = getenv("STANDIN_WRONG");
  float scale = *alpha * (wrong && !strcmp(wrong, "products") ? 1.01f : 1.0f), add = *beta;
  Description how = *description;
  const char* slow = getenv("STANDIN_SLOW");
  uint64_t number = algorithm->data[0];
  bool slowly = slow && strtoull(slow, nullptr, 10) == number;
  Layout lies_a = *of_a, lies_b = *of_b, lies_c = *of_c, lies_d = *of_d;
  std::function<void()> multiply = [=] {
    if (slowly) usleep(20000);
    size_t rows = lies_d.rows, columns = lies_d.columns, inner = how.transposed_a ? lies_a.rows : lies_a.columns;
    std::vector<float> left = matrix(a, lies_a, how.transposed_a, rows, inner, how.compute);
    // The right one's columns as rows.
    std::vector<float> right = matrix(b, lies_b, !how.transposed_b, columns, inner, how.compute);
    for (size_t j = 0; j < columns; j++)
      for (size_t i = 0; i < rows; i++) {
        double exact = 0;
        float rounded = 0;
        if (number == 2)
          for (size_t k = 0; k < inner; k++) rounded += left[i * inner + k] * right[j * inner + k];
        else
          for (size_t k = 0; k < inner; k++) exact += (double)left[i * inner + k] * right[j * inner + k];
        float result = scale * (number == 2 ? rounded : (float)exact);
        if (add != 0) result += add * c[i + j * lies_c.stride];
        if (how.epilogue == 4) result += how.bias[i];
        d[i + j * lies_d.stride] = result;
      }
  };
  static auto now_or_later = (void (*)(std::function<void()>*))dlsym(dlopen("libcuda.so", RTLD_NOW), "standin_do");
  now_or_later(&multiply);
  return 0;
}
