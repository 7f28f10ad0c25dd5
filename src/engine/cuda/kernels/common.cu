// What all kernels share. Maps are row-major with channels last; every kernel of blocks that add up
// gives each block its own place, and the places are added in a fixed order: no sum depends on which
// block comes first, so two runs give the same bits.
//
// `warp_sum` and `warp_max` give all 32 threads of a warp the sum and the largest of their values.
#ifndef STAND_IN
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}
#endif
#define WARPS 8           // of a block of 256 threads
#define HUGE_VALUE 1e30f  // larger than any score

// The number of this thread among all of a kernel that works value by value.
__device__ __forceinline__ size_t thread_number() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

// The sum or the largest of the values of a block of 256 threads, for all of them.
__device__ __forceinline__ float block_total(float v, bool largest) {
  __shared__ float of_warp[WARPS];
  v = largest ? warp_max(v) : warp_sum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = of_warp[0];
  for (int w = 1; w < WARPS; w++) v = largest ? fmaxf(v, of_warp[w]) : v + of_warp[w];
  return v;
}

// Writes a gradient, or adds it to what another reader of the same value has left there.
__device__ __forceinline__ void give(float* to, float v, unsigned add) { *to = add ? *to + v : v; }

// Sums over the 8 threads of each of 32 columns; valid in the first one.
__device__ __forceinline__ float column_total(float v) {
  __shared__ float of_threads[WARPS][33];
  unsigned column = threadIdx.x % 32, row = threadIdx.x / 32;
  __syncthreads();
  of_threads[row][column] = v;
  __syncthreads();
  if (row == 0)
    for (int r = 1; r < WARPS; r++) v += of_threads[r][column];
  return v;
}
