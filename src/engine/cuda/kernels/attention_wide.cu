// Attention as in attention.cu, for heads of any number of columns: a warp owns a query (or a key), its
// threads share the columns, and sums over keys (or queries) grow in the output's own memory. No model of
// the papers needs it; slower, and without a limit.

// The product of two rows, for all threads of a warp.
__device__ __forceinline__ float wide_dot(const float* a, const float* b, unsigned width) {
  float sum = 0;
  for (unsigned c = threadIdx.x % 32; c < width; c += 32) sum += a[c] * b[c];
  return warp_sum(sum);
}

// x = factor x + v row, or v row if factor is 0.
__device__ __forceinline__ void wide_add(float* x, float factor, float v, const float* row, unsigned width) {
  for (unsigned c = threadIdx.x % 32; c < width; c += 32) x[c] = (factor == 0.0f ? 0.0f : factor * x[c]) + v * row[c];
}

// Grid (images * heads, queries / 8), 256 threads; the others alike.
extern "C" __global__ void attention_wide(const float* q, const float* k, const float* v, float* y, float* sums, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads, i = blockIdx.y * WARPS + threadIdx.x / 32;
  if (i >= queries) return;
  q += (image * queries + i) * q_stride + head * width;
  k += image * keys * k_stride + head * width;
  v += image * keys * v_stride + head * width;
  y += ((image * queries + i) * heads + head) * width;
  float largest = -HUGE_VALUE, sum = 0;
  for (unsigned t = 0; t < keys; t++) {
    float score = scale * wide_dot(q, k + (size_t)t * k_stride, width), before = largest;
    largest = fmaxf(largest, score);
    float shrink = t ? expf(before - largest) : 0.0f, p = expf(score - largest);
    sum = sum * shrink + p;
    wide_add(y, shrink, p, v + (size_t)t * v_stride, width);
  }
  for (unsigned c = threadIdx.x % 32; c < width; c += 32) y[c] /= sum;
  if (threadIdx.x % 32 == 0) sums[(image * heads + head) * queries + i] = largest + logf(sum);
}

extern "C" __global__ void attention_queries_backward_wide(const float* q, const float* k, const float* v, const float* y, const float* dy, const float* sums, float* delta, float* dq, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads, i = blockIdx.y * WARPS + threadIdx.x / 32;
  if (i >= queries) return;
  size_t at_q = (image * queries + i) * q_stride + head * width, at = ((image * queries + i) * heads + head) * width;
  size_t row = (image * heads + head) * queries + i;
  k += image * keys * k_stride + head * width;
  v += image * keys * v_stride + head * width;
  float mean = wide_dot(dy + at, y + at, width), total = sums[row];
  if (threadIdx.x % 32 == 0) delta[row] = mean;
  for (unsigned t = 0; t < keys; t++) {
    const float* key = k + (size_t)t * k_stride;
    float p = expf(scale * wide_dot(q + at_q, key, width) - total);
    float ds = p * (wide_dot(dy + at, v + (size_t)t * v_stride, width) - mean) * scale;
    wide_add(dq + at_q, t || add ? 1.0f : 0.0f, ds, key, width);
  }
}

// Grid (images * heads, keys / 8).
extern "C" __global__ void attention_keys_backward_wide(const float* q, const float* k, const float* v, const float* dy, const float* sums, const float* delta, float* dk, float* dv, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add_k, unsigned add_v, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads, j = blockIdx.y * WARPS + threadIdx.x / 32;
  if (j >= keys) return;
  size_t at_k = (image * keys + j) * k_stride + head * width, at_v = (image * keys + j) * v_stride + head * width;
  q += image * queries * q_stride + head * width;
  dy += (image * queries * heads + head) * width;
  sums += (image * heads + head) * queries;
  delta += (image * heads + head) * queries;
  for (unsigned t = 0; t < queries; t++) {
    const float *query = q + (size_t)t * q_stride, *slope = dy + (size_t)t * heads * width;
    float p = expf(scale * wide_dot(query, k + at_k, width) - sums[t]);
    float ds = p * (wide_dot(slope, v + at_v, width) - delta[t]) * scale;
    wide_add(dk + at_k, t || add_k ? 1.0f : 0.0f, ds, query, width);
    wide_add(dv + at_v, t || add_v ? 1.0f : 0.0f, p, slope, width);
  }
}
