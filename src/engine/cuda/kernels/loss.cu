// Cross-entropy with mixed, smoothed targets: of each row `on * share_a` on class a, `on * share_b` on
// class b and `off * (share_a + share_b)` on every class.

// losses[row], and slopes of the loss times `weight`. A block of 256 threads a row.
extern "C" __global__ void cross_entropy(const float* logits, const unsigned* a, const unsigned* b, const float* share_a, const float* share_b, float* slopes, float* losses, unsigned classes, float on, float off, float weight) {
  unsigned row = blockIdx.x;
  logits += (size_t)row * classes;
  slopes += (size_t)row * classes;
  float largest = -HUGE_VALUE;
  for (unsigned c = threadIdx.x; c < classes; c += blockDim.x) largest = fmaxf(largest, logits[c]);
  largest = block_total(largest, true);
  float exps = 0, all = 0;
  for (unsigned c = threadIdx.x; c < classes; c += blockDim.x) {
    exps += expf(logits[c] - largest);
    all += logits[c] - largest;
  }
  exps = block_total(exps, false);
  all = block_total(all, false);
  // Targets with `others` smoothing do not quite sum to 1.
  float both = share_a[row] + share_b[row], of_a = on * share_a[row], of_b = on * share_b[row];
  off *= both;
  float mass = on * both + off * classes;
  for (unsigned c = threadIdx.x; c < classes; c += blockDim.x) {
    float target = off + (c == a[row] ? of_a : 0.0f) + (c == b[row] ? of_b : 0.0f);
    slopes[c] = weight * (mass * (expf(logits[c] - largest) / exps) - target);
  }
  if (threadIdx.x == 0) losses[row] = mass * logf(exps) - of_a * (logits[a[row]] - largest) - of_b * (logits[b[row]] - largest) - off * all;
}
