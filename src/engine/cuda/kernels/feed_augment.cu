// What is done to crops after they are cut, level by level as the CPU does it; compiled as feed.cu, after it.

// What is done to a crop; which members count depends on the code.
struct Op { double a, b; float f, g; unsigned code; int i[7]; };
enum { FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR, SHARPNESS, INVERT, AUTO_CONTRAST, EQUALIZE, POSTERIZE, SOLARIZE, CUTOUT, ERASE, SHEAR_X, SHEAR_Y, TRANSLATE, ROTATE };

// A number as a byte: without its fraction, and the nearest byte where it is none.
__device__ __forceinline__ u8 cut_off(double v) { return v <= 0 ? 0 : v >= 255 ? 255 : (u8)v; }
__device__ __forceinline__ u8 blend(u8 from, u8 to, float factor) { return cut_off((float)from + factor * ((float)to - (float)from)); }
__device__ __forceinline__ u8 luma(const u8* p) { return (19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16; }
__device__ __forceinline__ void set(u8* p, u8 r, u8 g, u8 b) { p[0] = r; p[1] = g; p[2] = b; }

// Turns the hue by `shift` of 256 in 8-bit HSV; PIL's mix of float and double.
__device__ __forceinline__ void turn_hue(u8* p, unsigned shift) {
  int high = max(p[0], max(p[1], p[2])), low = min(p[0], min(p[1], p[2])), largest = p[0] == high ? 0 : p[1] == high ? 1 : 2;
  float chroma = max(high - low, 1);
  double behind = (float)(high - p[(largest + 1) % 3]) / chroma, ahead = (float)(high - p[(largest + 2) % 3]) / chroma;
  float sixths = (float)(2.0 * largest + ahead - behind);
  double turn = (double)sixths / 6.0 + 1.0;
  float hue = (float)(turn - (turn >= 1.0 ? 1.0 : 0.0)), share = (float)(high - low) / (float)max(high, 1);
  unsigned h = ((unsigned)((double)hue * 255.0) + shift) & 255, s = (unsigned)((double)share * 255.0) & 255;
  const unsigned one = 255 * 255;
  unsigned sector = h * 6 / 255, through = h * 6 % 255;
  u8 v = high, down = (high * (one - s * 255) + one / 2) / one, falling = (high * (one - s * through) + one / 2) / one, rising = (high * (one - s * (255 - through)) + one / 2) / one;
  switch (sector) {
    case 1: set(p, falling, v, down); break;
    case 2: set(p, down, v, rising); break;
    case 3: set(p, down, falling, v); break;
    case 4: set(p, rising, down, v); break;
    case 5: set(p, v, down, falling); break;
    default: set(p, v, rising, down);
  }
}

// What moved images show outside of themselves, and what a cutout is filled with.
#define UNCOVERED 128
__device__ __forceinline__ void uncovered(u8* to) { set(to, UNCOVERED, UNCOVERED, UNCOVERED); }

// Cubic interpolation with a = -1 of `len` pixels that are `step` bytes apart, edges repeated.
__device__ __forceinline__ void sheared(const u8* line, int len, size_t step, double at, u8* to) {
  if (at < 0.0 || at >= len) return uncovered(to);
  double base = floor(at - 0.5), d = at - 0.5 - base;
  const u8* taps[4];
  for (int k = 0; k < 4; k++) taps[k] = line + min(max((int)base + k - 1, 0), len - 1) * step;
  for (int c = 0; c < 3; c++) {
    double a = taps[0][c], b = taps[1][c], e = taps[2][c], f = taps[3][c], cube = b - a + f - e;
    to[c] = cut_off(b + d * (e - a + d * (2.0 * (a - b) + e - f + d * cube)));
  }
}

// A pixel of a pass of the extended box: `reach` whole taps to each side of weight `inner`, and one of
// weight `ends` behind them; pixels are `step` bytes apart on a line of `len`.
__device__ __forceinline__ void boxed(const u8* line, int len, size_t step, int at, int reach, float inner, float ends, u8* to) {
  for (int c = 0; c < 3; c++) {
    unsigned sum = 0;
    for (int k = -reach; k <= reach; k++) sum += line[min(max(at + k, 0), len - 1) * step + c];
    unsigned outer = line[max(at - reach - 1, 0) * step + c] + line[min(at + reach + 1, len - 1) * step + c];
    to[c] = (u8)(unsigned)rintf((float)sum * inner + (float)outer * ends);
  }
}

// The whole-image operations' common work: a table for each channel from its histogram.
__device__ __forceinline__ void map_by_histogram(u8* p, unsigned pixels, bool equalize) {
  __shared__ unsigned counts[768];
  __shared__ u8 table[768];
  for (unsigned v = threadIdx.x; v < 768; v += blockDim.x) counts[v] = 0;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 3 * pixels; i += blockDim.x) atomicAdd(&counts[i % 3 * 256 + p[i]], 1u);
  __syncthreads();
  if (threadIdx.x < 3) {
    const unsigned* of = counts + threadIdx.x * 256;
    u8* to = table + threadIdx.x * 256;
    int low = 0, high = 255;
    while (low < 255 && !of[low]) low++;
    while (high > 0 && !of[high]) high--;
    unsigned step = (pixels - of[high]) / 255, cumulated = step / 2;
    double scale = high > low ? 255.0 / (high - low) : 1.0, offset = high > low ? -(double)low * scale : 0.0;
    for (int v = 0; v < 256; v++) {
      if (equalize) {
        to[v] = step ? min(cumulated / step, 255u) : v;
        cumulated += of[v];
      } else to[v] = cut_off(v * scale + offset);
    }
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 3 * pixels; i += blockDim.x) p[i] = table[i % 3 * 256 + p[i]];
}

// The rounded mean luma of an image, for all threads of a block.
__device__ __forceinline__ u8 mean_luma(const u8* p, unsigned pixels) {
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  unsigned long long own = 0;
  for (unsigned i = threadIdx.x; i < pixels; i += blockDim.x) own += luma(p + 3 * i);
  atomicAdd(&total, own);
  __syncthreads();
  return cut_off((double)total / pixels + 0.5);
}

// 32 bits that look random.
__device__ __forceinline__ unsigned scrambled(unsigned x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

// Noise for pixel `i` of an erased box: the sum of twelve random bytes is all but normal, 1530 in the mean
// with a standard deviation of 256.
__device__ __forceinline__ void noise(const Op& op, u8* p, unsigned i) {
  const int mean[3] = {124, 116, 104}, std[3] = {58, 57, 57};
  for (unsigned c = 0; c < 3; c++) {
    int sum = 0;
    for (unsigned word = 0; word < 3; word++) {
      unsigned bits = scrambled(scrambled(op.i[4] + 9 * i + 3 * c + word) ^ op.i[5]);
      sum += (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24);
    }
    p[c] = min(max(mean[c] + ((std[c] * (sum - 1530)) >> 8), 0), 255);
  }
}

// Does to pixel `i` what needs nothing but the pixel.
__device__ __forceinline__ void on_pixel(const Op& op, u8* p, unsigned x, unsigned y, u8 mean) {
  u8 gray = luma(p);
  if (op.code == HUE) return turn_hue(p, op.i[0]);
  bool covered = (int)x >= op.i[0] && (int)y >= op.i[1] && (int)x < op.i[2] && (int)y < op.i[3];
  if (op.code == CUTOUT && covered) return set(p, op.i[4], op.i[5], op.i[6]);
  if (op.code == ERASE && covered) return noise(op, p, (y - op.i[1]) * (op.i[2] - op.i[0]) + (x - op.i[0]));
#pragma unroll
  for (int c = 0; c < 3; c++) {
    u8 v = p[c];
    switch (op.code) {
      case BRIGHTNESS: v = blend(0, v, op.f); break;
      case CONTRAST: v = blend(mean, v, op.f); break;
      case SATURATION: v = blend(gray, v, op.f); break;
      case GRAYSCALE: v = gray; break;
      case INVERT: v = ~v; break;
      case POSTERIZE: v &= op.i[0]; break;
      case SOLARIZE: v = v < op.i[0] ? v : ~v; break;
    }
    p[c] = v;
  }
}

// Writes to pixel (x, y) of `to` what an operation makes of other pixels of `from`.
__device__ __forceinline__ void from_others(const Op& op, const u8* from, u8* to, int x, int y, int side) {
  size_t row = (size_t)side * 3;
  to += y * row + x * 3;
  const u8* own = from + y * row + x * 3;
  int column = x, line = y;
  switch (op.code) {
    case FLIP: column = side - 1 - x; break;
    case TRANSLATE: {
      double right = x + 0.5 + op.a, down = y + 0.5 + op.b;
      column = right >= 0.0 && right < side ? (int)right : -1;
      line = down >= 0.0 && down < side ? (int)down : -1;
      break;
    }
    case ROTATE:
      column = (int)((op.i[0] + (long long)op.i[2] * x + (long long)op.i[4] * y) >> 16);
      line = (int)((op.i[1] + (long long)op.i[3] * x + (long long)op.i[5] * y) >> 16);
      break;
    case SHEAR_X: return sheared(from + y * row, side, 3, x + 0.5 + op.a * (y + 0.5), to);
    case SHEAR_Y: return sheared(from + x * 3, side, row, y + 0.5 + op.a * (x + 0.5), to);
    case SHARPNESS:
      for (int c = 0; c < 3; c++) {
        u8 v = own[c];
        if (x > 0 && y > 0 && x < side - 1 && y < side - 1) {
          unsigned sum = 4 * v + 6;
          for (int j = -1; j <= 1; j++)
            for (int i = -1; i <= 1; i++) sum += *(own + c + j * (long long)row + i * 3);
          v = blend(sum / 13, v, op.f);
        }
        to[c] = v;
      }
      return;
  }
  if (column < 0 || line < 0 || column >= side || line >= side) return uncovered(to);
  const u8* source = from + line * row + column * 3;
  set(to, source[0], source[1], source[2]);
}

// Applies to each crop [side][side][3] its operations, one after the other; `other` is as large. A block of
// 256 threads a crop.
extern "C" __global__ void augment(const Crop* crops, const Op* ops, u8* to, u8* other, unsigned side) {
  Crop crop = crops[blockIdx.x];
  unsigned pixels = side * side;
  size_t row = (size_t)side * 3;
  u8 *home = to + (size_t)blockIdx.x * pixels * 3, *at = home, *spare = other + (size_t)blockIdx.x * pixels * 3;
  for (unsigned k = 0; k < crop.ops; k++) {
    Op op = ops[crop.first_op + k];
    bool moves = op.code == FLIP || op.code == SHARPNESS || op.code >= SHEAR_X;
    unsigned passes = op.code == BLUR ? 6 : moves ? 1 : 0;
    for (unsigned pass = 0; pass < passes; pass++) {
      for (unsigned i = threadIdx.x; i < pixels; i += blockDim.x) {
        int x = i % side, y = i / side;
        if (op.code != BLUR) from_others(op, at, spare, x, y, side);
        else if (pass < 3) boxed(at + y * row, side, 3, x, op.i[0], op.f, op.g, spare + 3 * i);
        else boxed(at + x * 3, side, row, y, op.i[0], op.f, op.g, spare + 3 * i);
      }
      __syncthreads();
      u8* swapped = at;
      at = spare;
      spare = swapped;
    }
    if (op.code == AUTO_CONTRAST || op.code == EQUALIZE) map_by_histogram(at, pixels, op.code == EQUALIZE);
    else if (!passes) {
      u8 mean = op.code == CONTRAST ? mean_luma(at, pixels) : 0;
      for (unsigned i = threadIdx.x; i < pixels; i += blockDim.x) on_pixel(op, at + 3 * i, i % side, i / side, mean);
    }
    __syncthreads();
  }
  if (at != home)
    for (unsigned i = threadIdx.x; i < 3 * pixels; i += blockDim.x) home[i] = at[i];
}
