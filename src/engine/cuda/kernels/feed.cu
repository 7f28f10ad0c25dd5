// Crops from images and drawn views, in the CPU's arithmetic bit by bit: a level more or less would become
// many where an operation amplifies it. Compiled without fused multiply-adds, which round otherwise.
// Images are bytes, [row][column][3].

typedef unsigned char u8;

// A crop: the part of an image that shows, `w` x `h` pixels of rows that are `stride` pixels apart, from
// byte `at` of the held images or of those that came with the batch.
struct Crop { unsigned long long at; unsigned staged, stride, w, h, rows_first, between, first_op, ops; };

// Resampling filters: a triangle, and Keys' cubic with a = -1/2.
__device__ __forceinline__ double resampling_filter(double x, unsigned cubic) {
  x = fabs(x);
  if (!cubic) return x < 1.0 ? 1.0 - x : 0.0;
  const double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

// How an axis of `size` pixels becomes one of `side`.
struct Axis {
  double scale, radius, inverse;
  unsigned size, cubic;
  __device__ Axis(unsigned size, unsigned side, unsigned cubic) : size(size), cubic(cubic) {
    scale = (double)size / side;
    double stretch = fmax(scale, 1.0);
    radius = (cubic ? 2.0 : 1.0) * stretch;
    inverse = 1.0 / stretch;
  }
  __device__ double centre(unsigned o) const { return (o + 0.5) * scale; }
  __device__ unsigned first(unsigned o) const { return (unsigned)fmax(floor(centre(o) - radius), 0.0); }
  __device__ unsigned end(unsigned o) const { return (unsigned)fmin(ceil(centre(o) + radius), (double)size); }
  __device__ double weight(unsigned o, unsigned x) const { return resampling_filter((x - (centre(o) - 0.5)) * inverse, cubic); }
  __device__ double sum(unsigned o) const {
    double sum = 0;
    for (unsigned x = first(o); x < end(o); x++) sum += weight(o, x);
    return sum;
  }
};

// The source pixels and weights of each output pixel: spans [crop][axis][side] = {first, how many}, weights
// [crop][axis][side][taps] in fixed point of `precisions` [crop][axis] bits, as many as the largest one
// leaves of 15. Grid (2, crops), 256 threads.
extern "C" __global__ void crop_weights(const Crop* crops, unsigned* spans, unsigned* precisions, short* weights, unsigned side, unsigned taps, unsigned cubic) {
  __shared__ double of_threads[256];
  __shared__ unsigned precision;
  Axis axis(blockIdx.x ? crops[blockIdx.y].h : crops[blockIdx.y].w, side, cubic);
  size_t place = (size_t)blockIdx.y * 2 + blockIdx.x;
  double largest = 0;
  for (unsigned o = threadIdx.x; o < side; o += 256) {
    double sum = axis.sum(o);
    for (unsigned x = axis.first(o); x < axis.end(o); x++) largest = fmax(largest, axis.weight(o, x) / sum);
  }
  of_threads[threadIdx.x] = largest;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int t = 1; t < 256; t++) largest = fmax(largest, of_threads[t]);
    unsigned bits = 0;
    while (bits < 21 && round(largest * (double)(1 << (bits + 1))) < 32768.0) bits++;
    precision = bits;
    precisions[place] = bits;
  }
  __syncthreads();
  double one = (double)(1 << precision);
  for (unsigned o = threadIdx.x; o < side; o += 256) {
    unsigned first = axis.first(o), end = axis.end(o);
    double sum = axis.sum(o);
    spans[(place * side + o) * 2] = first;
    spans[(place * side + o) * 2 + 1] = end - first;
    for (unsigned x = first; x < end; x++) weights[(place * side + o) * taps + x - first] = (short)round(axis.weight(o, x) / sum * one);
  }
}

// A pixel as the weighted sum of `count` pixels that are `step` bytes apart.
__device__ __forceinline__ void resample(const u8* from, size_t step, const short* weights, unsigned count, unsigned precision, u8* to) {
  int half = 1 << (precision - 1), sums[3] = {half, half, half};
  for (unsigned k = 0; k < count; k++, from += step)
#pragma unroll
    for (int c = 0; c < 3; c++) sums[c] += from[c] * weights[k];
#pragma unroll
  for (int c = 0; c < 3; c++) to[c] = (u8)min(max(sums[c] >> precision, 0), 255);
}

// The first pass: along rows to `side` columns or, where rows shrink by much more, along columns. A thread
// a pixel: grid (pixels / 256, crops).
extern "C" __global__ void crop_first(const Crop* crops, const unsigned* spans, const unsigned* precisions, const short* weights, const u8* held, const u8* staged, u8* between, unsigned side, unsigned taps) {
  Crop crop = crops[blockIdx.y];
  size_t i = thread_number();
  unsigned width = crop.rows_first ? crop.w : side, axis = crop.rows_first;
  if (i >= (size_t)width * (crop.rows_first ? side : crop.h)) return;
  unsigned x = i % width, y = i / width, o = axis ? y : x;
  size_t place = (size_t)blockIdx.y * 2 + axis, line = place * side + o, row = (size_t)crop.stride * 3;
  unsigned first = spans[2 * line];
  const u8* from = (crop.staged ? staged : held) + crop.at + (axis ? first * row + x * 3 : y * row + first * 3);
  resample(from, axis ? row : 3, weights + line * taps, spans[2 * line + 1], precisions[place], between + crop.between + i * 3);
}

// The second pass, along the other axis, to crops [crop][side][side][3]. As `crop_first`.
extern "C" __global__ void crop_second(const Crop* crops, const unsigned* spans, const unsigned* precisions, const short* weights, const u8* between, u8* to, unsigned side, unsigned taps) {
  Crop crop = crops[blockIdx.y];
  size_t i = thread_number();
  if (i >= (size_t)side * side) return;
  unsigned x = i % side, y = i / side, axis = !crop.rows_first, o = axis ? y : x;
  size_t place = (size_t)blockIdx.y * 2 + axis, line = place * side + o, row = (size_t)(axis ? side : crop.w) * 3;
  unsigned first = spans[2 * line];
  const u8* from = between + crop.between + (axis ? first * row + x * 3 : y * row + first * 3);
  resample(from, axis ? row : 3, weights + line * taps, spans[2 * line + 1], precisions[place], to + ((size_t)blockIdx.y * side * side + i) * 3);
}
