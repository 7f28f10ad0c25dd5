// softmax(q k^T * scale) v for each head, with any number of queries and keys. Scores never lie in
// memory: a block goes through the keys (or queries) in tiles and keeps a running softmax (Milakov and
// Gimelshein 2018; Dao et al. 2022). A thread owns a query (or a key) with up to N columns
// a head; attention_wide.cu has the kernels for more than 64.

#define OWN 64   // queries or keys of a block, a thread each
#define TILE 16  // of the others at a time

// Rows of q, k, v and the output have strides of their own. N columns a head at most.
template <int N>
__device__ __forceinline__ void load_tile(float (*tile)[N], const float* x, unsigned first, unsigned rows, unsigned stride, unsigned width) {
  for (unsigned j = threadIdx.x; j < TILE * N; j += OWN) {
    unsigned t = j / N, c = j % N;
    tile[t][c] = first + t < rows && c < width ? x[(size_t)(first + t) * stride + c] : 0.0f;
  }
}

template <int N>
__device__ __forceinline__ void load_own(float* own, const float* x, bool mine, unsigned width, float factor) {
#pragma unroll
  for (int c = 0; c < N; c++) own[c] = mine && c < width ? x[c] * factor : 0.0f;
}

template <int N>
__device__ __forceinline__ float dot(const float* a, const float* b) {
  float sum = 0;
#pragma unroll
  for (int c = 0; c < N; c++) sum += a[c] * b[c];
  return sum;
}

// y [image][query][head][width]; sums [image][head][query] = logarithm of the sum of the exponentials.
// Grid (images * heads, queries / 64), 64 threads.
template <int N>
__device__ void attend(const float* q, const float* k, const float* v, float* y, float* sums, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  __shared__ float K[TILE][N], V[TILE][N];
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads;
  unsigned i = blockIdx.y * OWN + threadIdx.x;
  bool mine = i < queries;
  k += image * keys * k_stride + head * width;
  v += image * keys * v_stride + head * width;
  float query[N], out[N], largest = -HUGE_VALUE, sum = 0;
  load_own<N>(query, q + (image * queries + i) * q_stride + head * width, mine, width, scale);
#pragma unroll
  for (int c = 0; c < N; c++) out[c] = 0;
  for (unsigned first = 0; first < keys; first += TILE) {
    __syncthreads();
    load_tile<N>(K, k, first, keys, k_stride, width);
    load_tile<N>(V, v, first, keys, v_stride, width);
    __syncthreads();
    unsigned count = min((unsigned)TILE, keys - first);
#pragma unroll 1
    for (unsigned t = 0; t < count; t++) {
      float score = dot<N>(query, K[t]);
      if (score > largest) {
        float shrink = expf(largest - score);
        sum *= shrink;
#pragma unroll
        for (int c = 0; c < N; c++) out[c] *= shrink;
        largest = score;
      }
      float p = expf(score - largest);
      sum += p;
#pragma unroll
      for (int c = 0; c < N; c++) out[c] += p * V[t][c];
    }
  }
  if (!mine) return;
  y += ((image * queries + i) * heads + head) * width;
#pragma unroll
  for (int c = 0; c < N; c++)
    if (c < width) y[c] = out[c] / sum;
  sums[(image * heads + head) * queries + i] = largest + logf(sum);
}

// The gradient along q; delta [image][head][query] = dy y summed over a head's columns. Launched as
// `attend`.
template <int N>
__device__ void attend_queries_backward(const float* q, const float* k, const float* v, const float* y, const float* dy, const float* sums, float* delta, float* dq, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  __shared__ float K[TILE][N], V[TILE][N];
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads;
  unsigned i = blockIdx.y * OWN + threadIdx.x;
  bool mine = i < queries;
  k += image * keys * k_stride + head * width;
  v += image * keys * v_stride + head * width;
  size_t at = ((image * queries + i) * heads + head) * width, row = (image * heads + head) * queries + i;
  size_t at_q = (image * queries + i) * q_stride + head * width;
  float query[N], slope[N], out[N];
  load_own<N>(query, q + at_q, mine, width, scale);
  load_own<N>(slope, dy + at, mine, width, 1.0f);
  load_own<N>(out, y + at, mine, width, 1.0f);
  float mean = dot<N>(slope, out), sum = mine ? sums[row] : 0.0f;
  if (mine) delta[row] = mean;
#pragma unroll
  for (int c = 0; c < N; c++) out[c] = 0;
  for (unsigned first = 0; first < keys; first += TILE) {
    __syncthreads();
    load_tile<N>(K, k, first, keys, k_stride, width);
    load_tile<N>(V, v, first, keys, v_stride, width);
    __syncthreads();
    unsigned count = min((unsigned)TILE, keys - first);
#pragma unroll 1
    for (unsigned t = 0; t < count; t++) {
      float p = expf(dot<N>(query, K[t]) - sum), ds = p * (dot<N>(slope, V[t]) - mean) * scale;
#pragma unroll
      for (int c = 0; c < N; c++) out[c] += ds * K[t][c];
    }
  }
  if (!mine) return;
#pragma unroll
  for (int c = 0; c < N; c++)
    if (c < width) give(dq + at_q + c, out[c], add);
}

// Gradients along k and v. Grid (images * heads, keys / 64), 64 threads; after
// `attend_queries_backward`.
template <int N>
__device__ void attend_keys_backward(const float* q, const float* k, const float* v, const float* dy, const float* sums, const float* delta, float* dk, float* dv, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add_k, unsigned add_v, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  // A thread's own key and value; one column more, so that threads read from banks of their own.
  __shared__ float K[OWN][N + 1], V[OWN][N + 1], Q[TILE][N], G[TILE][N];
  size_t image = blockIdx.x / heads, head = blockIdx.x % heads;
  unsigned me = threadIdx.x, j = blockIdx.y * OWN + me;
  bool mine = j < keys;
  size_t at_k = (image * keys + j) * k_stride + head * width, at_v = (image * keys + j) * v_stride + head * width;
  q += image * queries * q_stride + head * width;
  dy += (image * queries * heads + head) * width;
  sums += (image * heads + head) * queries;
  delta += (image * heads + head) * queries;
  load_own<N>(K[me], k + at_k, mine, width, scale);
  load_own<N>(V[me], v + at_v, mine, width, 1.0f);
  float of_k[N], of_v[N];
#pragma unroll
  for (int c = 0; c < N; c++) of_k[c] = of_v[c] = 0;
  for (unsigned first = 0; first < queries; first += TILE) {
    __syncthreads();
    load_tile<N>(Q, q, first, queries, q_stride, width);
    load_tile<N>(G, dy, first, queries, heads * width, width);
    __syncthreads();
    unsigned count = min((unsigned)TILE, queries - first);
#pragma unroll 1
    for (unsigned t = 0; t < count; t++) {
      float p = expf(dot<N>(Q[t], K[me]) - sums[first + t]);
      float ds = p * (dot<N>(G[t], V[me]) - delta[first + t]) * scale;
#pragma unroll
      for (int c = 0; c < N; c++) {
        of_k[c] += ds * Q[t][c];
        of_v[c] += p * G[t][c];
      }
    }
  }
  if (!mine) return;
#pragma unroll
  for (int c = 0; c < N; c++)
    if (c < width) {
      give(dk + at_k + c, of_k[c], add_k);
      give(dv + at_v + c, of_v[c], add_v);
    }
}

// The kernels, for heads of up to 32 columns and of up to 64.

extern "C" __global__ void __launch_bounds__(OWN) attention_32(const float* q, const float* k, const float* v, float* y, float* sums, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend<32>(q, k, v, y, sums, q_stride, k_stride, v_stride, queries, keys, heads, width, scale);
}
extern "C" __global__ void __launch_bounds__(OWN) attention_queries_backward_32(const float* q, const float* k, const float* v, const float* y, const float* dy, const float* sums, float* delta, float* dq, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend_queries_backward<32>(q, k, v, y, dy, sums, delta, dq, q_stride, k_stride, v_stride, add, queries, keys, heads, width, scale);
}
extern "C" __global__ void __launch_bounds__(OWN) attention_keys_backward_32(const float* q, const float* k, const float* v, const float* dy, const float* sums, const float* delta, float* dk, float* dv, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add_k, unsigned add_v, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend_keys_backward<32>(q, k, v, dy, sums, delta, dk, dv, q_stride, k_stride, v_stride, add_k, add_v, queries, keys, heads, width, scale);
}

extern "C" __global__ void __launch_bounds__(OWN) attention_64(const float* q, const float* k, const float* v, float* y, float* sums, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend<64>(q, k, v, y, sums, q_stride, k_stride, v_stride, queries, keys, heads, width, scale);
}
extern "C" __global__ void __launch_bounds__(OWN) attention_queries_backward_64(const float* q, const float* k, const float* v, const float* y, const float* dy, const float* sums, float* delta, float* dq, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend_queries_backward<64>(q, k, v, y, dy, sums, delta, dq, q_stride, k_stride, v_stride, add, queries, keys, heads, width, scale);
}
extern "C" __global__ void __launch_bounds__(OWN) attention_keys_backward_64(const float* q, const float* k, const float* v, const float* dy, const float* sums, const float* delta, float* dk, float* dv, unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned add_k, unsigned add_v, unsigned queries, unsigned keys, unsigned heads, unsigned width, float scale) {
  attend_keys_backward<64>(q, k, v, dy, sums, delta, dk, dv, q_stride, k_stride, v_stride, add_k, add_v, queries, keys, heads, width, scale);
}
