// What algorithms of matrix products are tried on.

// Numbers between -1 and 1 that look like chance, of n values.
extern "C" __global__ void made_up(float* x, unsigned seed, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned v = (unsigned)i * 2654435761u + seed * 40503u + 12345u;
  v = (v ^ v >> 15) * 2246822519u;
  v = (v ^ v >> 13) * 3266489917u;
  x[i] = (int)(v ^ v >> 16) / 2147483648.0f;
}

// Sets `differs` to 1 where one of n values has other bits in a than in b.
extern "C" __global__ void differing(const unsigned* a, const unsigned* b, unsigned* differs, unsigned n) {
  size_t i = thread_number();
  if (i < n && a[i] != b[i]) *differs = 1;
}
