// Layer normalisation of rows of `dim` values (Ba et al. 2016).

// y = (x - mean) / sqrt(variance + eps) * weight + bias; stat[row] = {mean, 1 / sqrt(variance + eps)}.
// A warp a row: grid rows / 8, 256 threads.
extern "C" __global__ void norm_forward(const float* x, const float* weight, const float* bias, float* y, float* stat, unsigned rows, unsigned dim, float eps) {
  size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  unsigned lane = threadIdx.x % 32;
  x += row * dim;
  y += row * dim;
  float sum = 0;
  for (unsigned c = lane; c < dim; c += 32) sum += x[c];
  float mean = warp_sum(sum) / dim, squares = 0;
  for (unsigned c = lane; c < dim; c += 32) squares += (x[c] - mean) * (x[c] - mean);
  float scale = 1.0f / sqrtf(warp_sum(squares) / dim + eps);
  for (unsigned c = lane; c < dim; c += 32) y[c] = (x[c] - mean) * scale * weight[c] + bias[c];
  if (lane == 0) {
    stat[2 * row] = mean;
    stat[2 * row + 1] = scale;
  }
}

// The gradient along x; launched as `norm_forward`.
extern "C" __global__ void norm_backward(const float* dy, const float* x, const float* weight, const float* stat, float* dx, unsigned add, unsigned rows, unsigned dim) {
  size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
  if (row >= rows) return;
  unsigned lane = threadIdx.x % 32;
  x += row * dim;
  dy += row * dim;
  dx += row * dim;
  float mean = stat[2 * row], scale = stat[2 * row + 1], sum = 0, slope = 0;
  for (unsigned c = lane; c < dim; c += 32) {
    float d = dy[c] * weight[c];
    sum += d;
    slope += d * (x[c] - mean) * scale;
  }
  sum = warp_sum(sum) / dim;
  slope = warp_sum(slope) / dim;
  for (unsigned c = lane; c < dim; c += 32) give(dx + c, scale * (dy[c] * weight[c] - sum - (x[c] - mean) * scale * slope), add);
}

// Gradients of weight and bias: partial[block y] = {sums for the weight, sums for the bias}; launched as
// `column_sums`.
extern "C" __global__ void norm_sums(const float* dy, const float* x, const float* stat, float* partial, unsigned rows, unsigned dim) {
  unsigned column = blockIdx.x * 32 + threadIdx.x % 32;
  float of_weight = 0, of_bias = 0;
  if (column < dim)
    for (unsigned r = blockIdx.y * WARPS + threadIdx.x / 32; r < rows; r += gridDim.y * WARPS) {
      size_t i = (size_t)r * dim + column;
      of_weight += dy[i] * (x[i] - stat[2 * r]) * stat[2 * r + 1];
      of_bias += dy[i];
    }
  of_weight = column_total(of_weight);
  of_bias = column_total(of_bias);
  if (threadIdx.x < 32 && column < dim) {
    partial += (size_t)blockIdx.y * 2 * dim + column;
    partial[0] = of_weight;
    partial[dim] = of_bias;
  }
}
