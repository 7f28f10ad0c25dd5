// A 3 x 3 convolution of each channel of a square map by itself, stride 1, one zero around the map.
// Weights are [channels][9].

#define TAPS 9

// n values.
extern "C" __global__ void depthwise_forward(const float* x, const float* weight, const float* bias, float* y, unsigned side, unsigned channels, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned channel = i % channels;
  size_t pixel = i / channels;
  int row = pixel % (side * side) / side, column = pixel % side;
  float sum = bias[channel];
  for (int down = -1; down <= 1; down++)
    for (int right = -1; right <= 1; right++) {
      if (row + down < 0 || row + down >= (int)side || column + right < 0 || column + right >= (int)side) continue;
      sum += x[(pixel + down * (int)side + right) * channels + channel] * weight[channel * TAPS + (down + 1) * 3 + right + 1];
    }
  y[i] = sum;
}

// The gradient along x, of n values.
extern "C" __global__ void depthwise_backward(const float* dy, const float* weight, float* dx, unsigned add, unsigned side, unsigned channels, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned channel = i % channels;
  size_t pixel = i / channels;
  int row = pixel % (side * side) / side, column = pixel % side;
  float sum = 0;
  for (int down = -1; down <= 1; down++)
    for (int right = -1; right <= 1; right++) {
      if (row + down < 0 || row + down >= (int)side || column + right < 0 || column + right >= (int)side) continue;
      sum += dy[(pixel + down * (int)side + right) * channels + channel] * weight[channel * TAPS + (1 - down) * 3 + 1 - right];
    }
  give(dx + i, sum, add);
}

// Gradients of weight and bias: partial[block y] = {channels x 9 sums for the weight, channels sums for
// the bias}. Grid (channels / 32, blocks), 256 threads; `pixels` are those of all images.
extern "C" __global__ void depthwise_sums(const float* dy, const float* x, float* partial, unsigned side, unsigned channels, unsigned pixels) {
  unsigned channel = blockIdx.x * 32 + threadIdx.x % 32;
  float of_tap[TAPS] = {0, 0, 0, 0, 0, 0, 0, 0, 0}, of_bias = 0;
  if (channel < channels)
    for (unsigned p = blockIdx.y * WARPS + threadIdx.x / 32; p < pixels; p += gridDim.y * WARPS) {
      int row = p % (side * side) / side, column = p % side;
      float d = dy[(size_t)p * channels + channel];
      of_bias += d;
#pragma unroll
      for (int tap = 0; tap < TAPS; tap++) {
        int down = tap / 3 - 1, right = tap % 3 - 1;
        if (row + down < 0 || row + down >= (int)side || column + right < 0 || column + right >= (int)side) continue;
        of_tap[tap] += d * x[((size_t)p + down * (int)side + right) * channels + channel];
      }
    }
  partial += (size_t)blockIdx.y * channels * (TAPS + 1);
  bool first = threadIdx.x < 32 && channel < channels;
#pragma unroll
  for (int tap = 0; tap < TAPS; tap++) {
    float sum = column_total(of_tap[tap]);
    if (first) partial[channel * TAPS + tap] = sum;
  }
  float sum = column_total(of_bias);
  if (first) partial[channels * TAPS + channel] = sum;
}
