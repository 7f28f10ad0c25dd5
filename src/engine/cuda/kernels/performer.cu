// Attention by positive random features (Choromanski et al. 2021): with
// phi(x) = exp(w x - |x|^2 / 2) / sqrt(features), y = phi(q) sum_t phi(k_t) v_t^T / norm and
// norm = phi(q) sum_t phi(k_t) + eps. `kqv` is [token][3][dim]: keys, queries, values.

// phi [token][2][features] of keys and queries; n values.
extern "C" __global__ void performer_features(const float* kqv, const float* w, float* phi, unsigned dim, unsigned features, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t token = i / (2 * features);
  const float* x = kqv + (token * 3 + i / features % 2) * dim;
  const float* row = w + i % features * dim;
  float exponent = 0;
  for (unsigned d = 0; d < dim; d++) exponent += (row[d] - 0.5f * x[d]) * x[d];
  phi[i] = expf(exponent) / sqrtf(features);
}

// sums [image][feature][dim + 1] = over the image's tokens: phi times {a row of `dim` values, a last
// value}. Rows of x are `stride` apart; without `last` it is 1. `part` 0 takes phi of keys, 1 of queries.
// Grid (outputs of an image / 256, images), 256 threads.
extern "C" __global__ void performer_sums(const float* phi, const float* x, const float* last, float* sums, unsigned part, unsigned stride, unsigned tokens, unsigned dim, unsigned features) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x, columns = dim + 1;
  if (i >= features * columns) return;
  unsigned feature = i / columns, column = i % columns;
  size_t first = (size_t)blockIdx.y * tokens;
  float sum = 0;
  for (size_t t = first; t < first + tokens; t++) {
    float value = column < dim ? x[t * stride + column] : last ? last[t] : 1.0f;
    sum += phi[(t * 2 + part) * features + feature] * value;
  }
  sums[(size_t)blockIdx.y * features * columns + i] = sum;
}

// y and norm [token]; n values of y.
extern "C" __global__ void performer_out(const float* phi, const float* sums, float* y, float* norm, float eps, unsigned tokens, unsigned dim, unsigned features, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t token = i / dim;
  unsigned column = i % dim;
  const float* query = phi + (token * 2 + 1) * features;
  const float* of_image = sums + token / tokens * features * (dim + 1);
  float sum = 0, total = 0;
  for (unsigned f = 0; f < features; f++) {
    sum += query[f] * of_image[f * (dim + 1) + column];
    total += query[f] * of_image[f * (dim + 1) + dim];
  }
  y[i] = sum / (total + eps);
  if (column == 0) norm[token] = total + eps;
}

// slopes = dy / norm, the gradient of y's numerator, and of_norm [token], that of norm; n values of dy.
extern "C" __global__ void performer_slopes(const float* dy, const float* y, const float* norm, float* slopes, float* of_norm, unsigned dim, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t token = i / dim;
  slopes[i] = dy[i] / norm[token];
  if (i % dim) return;
  float sum = 0;
  for (unsigned d = 0; d < dim; d++) sum += dy[i + d] * y[i + d];
  of_norm[token] = -sum / norm[token];
}

// The gradient of the exponents of phi, [token][2][features]; dsums is the gradient of sums. n values.
extern "C" __global__ void performer_exponents(const float* kqv, const float* phi, const float* sums, const float* dsums, const float* slopes, const float* of_norm, float* exponents, unsigned tokens, unsigned dim, unsigned features, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t token = i / (2 * features);
  unsigned feature = i % features;
  bool of_key = i / features % 2 == 0;
  const float* row = (of_key ? dsums : sums) + (token / tokens * features + feature) * (dim + 1);
  const float* x = of_key ? kqv + (token * 3 + 2) * dim : slopes + token * dim;
  float sum = row[dim] * (of_key ? 1.0f : of_norm[token]);
  for (unsigned d = 0; d < dim; d++) sum += row[d] * x[d];
  exponents[i] = sum * phi[i];
}

// The gradient of kqv, of n values.
extern "C" __global__ void performer_backward(const float* kqv, const float* w, const float* phi, const float* dsums, const float* exponents, float* dkqv, unsigned add, unsigned tokens, unsigned dim, unsigned features, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t token = i / (3 * dim);
  unsigned part = i / dim % 3, d = i % dim;
  float sum = 0;
  if (part == 2) {
    const float* of_image = dsums + token / tokens * features * (dim + 1);
    for (unsigned f = 0; f < features; f++) sum += phi[token * 2 * features + f] * of_image[f * (dim + 1) + d];
  } else {
    const float* row = exponents + (token * 2 + part) * features;
    for (unsigned f = 0; f < features; f++) sum += row[f] * (w[f * dim + d] - kqv[i]);
  }
  give(dkqv + i, sum, add);
}
