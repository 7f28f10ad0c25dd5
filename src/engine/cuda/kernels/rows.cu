// Rows of tokens: sums over them, residual branches, the class token and positions.

// partial[block y][column] = sum of x[row][column] over the rows y, y + 8 * blocks, ..;
// rows are `stride` apart. Grid (columns / 32, blocks), 256 threads.
extern "C" __global__ void column_sums(const float* x, float* partial, unsigned rows, unsigned columns, unsigned stride) {
  unsigned column = blockIdx.x * 32 + threadIdx.x % 32;
  float sum = 0;
  if (column < columns)
    for (unsigned r = blockIdx.y * WARPS + threadIdx.x / 32; r < rows; r += gridDim.y * WARPS) sum += x[(size_t)r * stride + column];
  sum = column_total(sum);
  if (threadIdx.x < 32 && column < columns) partial[(size_t)blockIdx.y * columns + column] = sum;
}

// total[i] += sum over blocks of partial[block][first + i]; partial has `columns` columns.
extern "C" __global__ void add_partials(const float* partial, float* total, unsigned blocks, unsigned columns, unsigned first, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  float sum = 0;
  for (unsigned b = 0; b < blocks; b++) sum += partial[(size_t)b * columns + first + i];
  total[i] += sum;
}

// y = residual + factor x. The residual's rows are `width` wide and their last `dim` columns are meant;
// a factor serves `of_factor` values, none = 1. n values.
extern "C" __global__ void add_branch(const float* x, const float* residual, const float* factors, float* y, unsigned dim, unsigned width, unsigned of_factor, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t row = i / dim, column = i % dim;
  float factor = factors ? factors[i / of_factor] : 1.0f;
  y[i] = residual[row * width + width - dim + column] + factor * x[i];
}

// Gradients of `add_branch`, for each of the residual's n values.
extern "C" __global__ void add_branch_backward(const float* dy, const float* factors, float* dx, float* dresidual, unsigned add_x, unsigned add_residual, unsigned dim, unsigned width, unsigned of_factor, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t row = i / width;
  unsigned column = i % width, before = width - dim;
  if (column < before) {
    if (dresidual && !add_residual) dresidual[i] = 0;
    return;
  }
  size_t from = row * dim + column - before;
  float d = dy[from];
  if (dresidual) give(dresidual + i, d, add_residual);
  if (dx) give(dx + from, factors ? factors[from / of_factor] * d : d, add_x);
}

// The first of each `tokens` rows; n values.
extern "C" __global__ void class_rows(const float* x, float* y, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i < n) y[i] = x[i / dim * tokens * dim + i % dim];
}

// Its gradient: 0 in all other rows. n values of x.
extern "C" __global__ void class_rows_backward(const float* dy, float* dx, unsigned add, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t row = i / dim;
  give(dx + i, row % tokens == 0 ? dy[row / tokens * dim + i % dim] : 0.0f, add);
}

// The mean of each `tokens` rows; n values.
extern "C" __global__ void mean_rows(const float* x, float* y, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  const float* column = x + i / dim * tokens * dim + i % dim;
  float sum = 0;
  for (unsigned t = 0; t < tokens; t++) sum += column[(size_t)t * dim];
  y[i] = sum / tokens;
}

// Its gradient; n values of x.
extern "C" __global__ void mean_rows_backward(const float* dy, float* dx, unsigned add, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i < n) give(dx + i, dy[i / dim / tokens * dim + i % dim] / tokens, add);
}

// y[image][0] = class + position[0], y[image][1 + t] = x[image][t] + position[1 + t]; n values of y, which
// has `tokens` an image.
extern "C" __global__ void embed(const float* x, const float* class_token, const float* position, float* y, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t row = i / dim, image = row / tokens;
  unsigned token = row % tokens, column = i % dim;
  float v = token == 0 ? class_token[column] : x[(row - image - 1) * dim + column];
  y[i] = v + position[token * dim + column];
}

// Its gradient along x, whose n values these are; that of the others is a sum over the images.
extern "C" __global__ void embed_backward(const float* dy, float* dx, unsigned add, unsigned tokens, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t row = i / dim, image = row / (tokens - 1);
  give(dx + i, dy[(row + image + 1) * dim + i % dim], add);
}
