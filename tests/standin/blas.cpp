// A stand-in for libcublasLt: products of f32 matrices that lie column by column, with a bias.
//
// STANDIN_WRONG=products: each is a hundredth too large.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#define API extern "C" int

struct Layout { uint64_t rows, columns; int64_t stride; };
struct Description { int transposed_a = 0, transposed_b = 0; uint32_t epilogue = 1; const float* bias = nullptr; };
struct Algorithm { uint64_t data[8]; };
struct Found { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

API cublasLtCreate(void** handle) { *handle = malloc(1); return 0; }
API cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (type != 0) return 15;
  *layout = new Layout{rows, columns, stride};
  return 0;
}
API cublasLtMatmulDescCreate(Description** description, int, int) { *description = new Description; return 0; }
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
API cublasLtMatmulAlgoGetHeuristic(void*, Description*, Layout*, Layout*, Layout*, Layout*, void*, int, Found* found, int* count) {
  *found = {};
  *count = 1;
  return 0;
}
API cublasLtMatmul(void*, Description* how, const float* alpha, const float* a, Layout* of_a, const float* b, Layout* of_b, const float* beta, const float* c, Layout* of_c, float* d, Layout* of_d, const void*, void*, size_t, void*) {
  const char* wrong = getenv("STANDIN_WRONG");
  float factor = *alpha * (wrong && !strcmp(wrong, "products") ? 1.01f : 1.0f);
  size_t rows = of_d->rows, columns = of_d->columns, inner = how->transposed_a ? of_a->rows : of_a->columns;
  for (size_t j = 0; j < columns; j++)
    for (size_t i = 0; i < rows; i++) {
      double sum = 0;
      for (size_t k = 0; k < inner; k++) {
        float x = how->transposed_a ? a[k + i * of_a->stride] : a[i + k * of_a->stride];
        float y = how->transposed_b ? b[j + k * of_b->stride] : b[k + j * of_b->stride];
        sum += (double)x * y;
      }
      float result = factor * (float)sum;
      if (*beta != 0) result += *beta * c[i + j * of_c->stride];
      if (how->epilogue == 4) result += how->bias[i];
      d[i + j * of_d->stride] = result;
    }
  return 0;
}
