// Activations, value by value: GELU in its erf form (Hendrycks and Gimpel 2016) and max(x, 0).

extern "C" __global__ void gelu_forward(const float* x, float* y, unsigned n) {
  size_t i = thread_number();
  if (i < n) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
}

// dy times the slope at x.
extern "C" __global__ void gelu_backward(const float* dy, const float* x, float* dx, unsigned add, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  float v = x[i], share = 0.5f * (1.0f + erff(v * 0.70710678f)), density = 0.39894228f * expf(-0.5f * v * v);
  give(dx + i, dy[i] * (share + v * density), add);
}

extern "C" __global__ void relu_forward(const float* x, float* y, unsigned n) {
  size_t i = thread_number();
  if (i < n) y[i] = fmaxf(x[i], 0.0f);
}

extern "C" __global__ void relu_backward(const float* dy, const float* x, float* dx, unsigned add, unsigned n) {
  size_t i = thread_number();
  if (i < n) give(dx + i, x[i] > 0 ? dy[i] : 0.0f, add);
}
