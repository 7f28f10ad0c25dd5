// Windows of maps as rows of a matrix, and means over windows. Maps are square, `side` values high and
// wide, with `channels` channels.

// Row [image][window], entry [channel][down][right] of a window; 0 outside of the map. `count` windows
// along each side, n values in all.
extern "C" __global__ void unfold_forward(const float* x, float* y, unsigned side, unsigned channels, unsigned kernel, unsigned stride, unsigned padding, unsigned count, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned taps = kernel * kernel, width = channels * taps, inside = i % width;
  size_t window = i / width, image = window / (count * count);
  unsigned place = window % (count * count);
  int row = place / count * stride + inside % taps / kernel - padding;
  int column = place % count * stride + inside % kernel - padding;
  bool on_map = row >= 0 && row < (int)side && column >= 0 && column < (int)side;
  y[i] = on_map ? x[((image * side + row) * side + column) * channels + inside / taps] : 0.0f;
}

// Its gradient: for each of the map's n values the sum over the windows that hold it.
extern "C" __global__ void unfold_backward(const float* dy, float* dx, unsigned add, unsigned side, unsigned channels, unsigned kernel, unsigned stride, unsigned padding, unsigned count, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned channel = i % channels, taps = kernel * kernel;
  size_t pixel = i / channels, image = pixel / (side * side);
  unsigned row = pixel % (side * side) / side + padding, column = pixel % side + padding;
  unsigned top = row < kernel ? 0 : (row - kernel) / stride + 1, left = column < kernel ? 0 : (column - kernel) / stride + 1;
  float sum = 0;
  for (unsigned r = top; r < count && r * stride <= row; r++)
    for (unsigned c = left; c < count && c * stride <= column; c++) {
      unsigned inside = channel * taps + (row - r * stride) * kernel + column - c * stride;
      sum += dy[((image * count + r) * count + c) * channels * taps + inside];
    }
  give(dx + i, sum, add);
}

// The first pixel of window `w` of `windows` along a side.
__device__ __forceinline__ unsigned window_start(unsigned w, unsigned side, unsigned windows) { return w * side / windows; }
// One past its last pixel.
__device__ __forceinline__ unsigned window_end(unsigned w, unsigned side, unsigned windows) { return ((w + 1) * side + windows - 1) / windows; }

// Means over `windows` x `windows` windows as equal in size as can be, which may overlap; n values.
extern "C" __global__ void pool_forward(const float* x, float* y, unsigned side, unsigned windows, unsigned channels, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t place = i / channels, image = place / (windows * windows);
  unsigned r = place % (windows * windows) / windows, c = place % windows;
  unsigned top = window_start(r, side, windows), bottom = window_end(r, side, windows);
  unsigned left = window_start(c, side, windows), right = window_end(c, side, windows);
  float sum = 0;
  for (unsigned row = top; row < bottom; row++)
    for (unsigned column = left; column < right; column++) sum += x[((image * side + row) * side + column) * channels + i % channels];
  y[i] = sum / ((bottom - top) * (right - left));
}

// Its gradient, for each of the map's n values.
extern "C" __global__ void pool_backward(const float* dy, float* dx, unsigned add, unsigned side, unsigned windows, unsigned channels, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t pixel = i / channels, image = pixel / (side * side);
  unsigned row = pixel % (side * side) / side, column = pixel % side;
  float sum = 0;
  for (unsigned r = 0; r < windows; r++) {
    unsigned top = window_start(r, side, windows), bottom = window_end(r, side, windows);
    if (row < top || row >= bottom) continue;
    for (unsigned c = 0; c < windows; c++) {
      unsigned left = window_start(c, side, windows), right = window_end(c, side, windows);
      if (column < left || column >= right) continue;
      sum += dy[((image * windows + r) * windows + c) * channels + i % channels] / ((bottom - top) * (right - left));
    }
  }
  give(dx + i, sum, add);
}
