// Steps of the optimiser and averages, over vectors as long as the parameters. They are cut into pieces
// of one parameter each, a block of 256 threads a piece.

// Where a piece lies, and whose it is.
struct Piece { unsigned start, len, parameter; };

// What a step does to a parameter, as in engine/optim.rs. AdamW: `decay` is 1 - lr wd, `lr` divided by the
// first moment's correction, `root` the second's. SGD: `decay` is wd, `beta1` the momentum.
struct Rule { float kind, scale, lr, decay, beta1, beta2, eps, root; };
#define REST 0
#define ADAMW 1
#define SGD 2

// squares[piece] = sum of the squares of its gradients.
extern "C" __global__ void squares(const float* gradient, const Piece* pieces, double* squares) {
  __shared__ double of_threads[256];
  Piece piece = pieces[blockIdx.x];
  double sum = 0;
  for (unsigned i = threadIdx.x; i < piece.len; i += 256) {
    double g = gradient[piece.start + i];
    sum += g * g;
  }
  of_threads[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int t = 1; t < 256; t++) sum += of_threads[t];
    squares[blockIdx.x] = sum;
  }
}

// A step of each parameter by its rule; then the averaged weights, if there are any, move towards the new
// ones.
extern "C" __global__ void step(const float* gradient, float* weights, float* m, float* v, float* average, float keep, const Piece* pieces, const Rule* rules) {
  Piece piece = pieces[blockIdx.x];
  Rule rule = rules[piece.parameter];
  for (unsigned j = threadIdx.x; j < piece.len; j += 256) {
    unsigned i = piece.start + j;
    float g = gradient[i] * rule.scale, w = weights[i];
    if (rule.kind == ADAMW) {
      m[i] = rule.beta1 * m[i] + (1.0f - rule.beta1) * g;
      v[i] = rule.beta2 * v[i] + (1.0f - rule.beta2) * g * g;
      w = w * rule.decay - rule.lr * m[i] / (sqrtf(v[i]) * rule.root + rule.eps);
    } else if (rule.kind == SGD) {
      m[i] = rule.beta1 * m[i] + (g + rule.decay * w);
      w -= rule.lr * m[i];
    }
    weights[i] = w;
    if (average) average[i] = keep * average[i] + (1.0f - keep) * w;
  }
}

// average = keep average + (1 - keep) x, of n values.
extern "C" __global__ void average(float* average, const float* x, float keep, unsigned n) {
  size_t i = thread_number();
  if (i < n) average[i] = keep * average[i] + (1.0f - keep) * x[i];
}
