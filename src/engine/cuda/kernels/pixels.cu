// Images as the model sees them: normalised, [images][side][side][3].

// From the crops [row][side][side][3] of a batch, in bytes, from row `first` on; `partners` are rows too.
// `mode` 0 leaves a crop alone, 1 takes the box from its partner (CutMix), 2 mixes the two (Mixup). A value
// is byte * scale + offset of its channel. n values.
extern "C" __global__ void pixels_from_bytes(const unsigned char* crops, const unsigned* partners, float* y, unsigned first, unsigned mode, unsigned left, unsigned top, unsigned right, unsigned bottom, float lambda, float scale0, float scale1, float scale2, float offset0, float offset1, float offset2, unsigned side, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  size_t len = (size_t)side * side * 3, image = i / len, inside = i % len;
  unsigned channel = i % 3, column = i / 3 % side, row = i / 3 / side % side;
  float scale = channel == 0 ? scale0 : channel == 1 ? scale1 : scale2;
  float offset = channel == 0 ? offset0 : channel == 1 ? offset1 : offset2;
  float v = crops[(first + image) * len + inside], other = mode ? crops[partners[image] * len + inside] : 0.0f;
  if (mode == 1 && row >= top && row < bottom && column >= left && column < right) v = other;
  y[i] = mode == 2 ? v * (lambda * scale) + offset + other * ((1.0f - lambda) * scale) : v * scale + offset;
}

// From normalised planes [images][3][side][side]; n values.
extern "C" __global__ void pixels_from_planes(const float* x, float* y, unsigned side, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned area = side * side;
  size_t pixel = i / 3;
  y[i] = x[(pixel / area * 3 + i % 3) * area + pixel % area];
}
