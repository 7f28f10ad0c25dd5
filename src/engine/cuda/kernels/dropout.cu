// Factors of dropout, from the same draws as on the CPU: word i of a ChaCha8 stream (Bernstein 2008) whose
// key is what the draw is for.

__device__ __forceinline__ unsigned rotated(unsigned v, int by) { return v << by | v >> (32 - by); }

__device__ __forceinline__ void quarter_round(unsigned* s, int a, int b, int c, int d) {
  s[a] += s[b]; s[d] = rotated(s[d] ^ s[a], 16);
  s[c] += s[d]; s[b] = rotated(s[b] ^ s[c], 12);
  s[a] += s[b]; s[d] = rotated(s[d] ^ s[a], 8);
  s[c] += s[d]; s[b] = rotated(s[b] ^ s[c], 7);
}

#define WORDS 16  // of a block of the stream

// factors [image][values]: 0 where the word is below `threshold`, else `kept`. The key is {seed, purpose,
// step, row, layer}; rows count from `first_row`. A thread a block of the stream, n of them.
extern "C" __global__ void dropout_factors(float* factors, unsigned seed_low, unsigned seed_high, unsigned purpose, unsigned step, unsigned first_row, unsigned layer, unsigned threshold, float kept, unsigned values, unsigned n) {
  size_t i = thread_number();
  if (i >= n) return;
  unsigned blocks = (values + WORDS - 1) / WORDS, image = i / blocks, block = i % blocks;
  unsigned first[WORDS] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, seed_low, seed_high, purpose, step, first_row + image, 0, layer, 0, block, 0, 0, 0};
  unsigned s[WORDS];
#pragma unroll
  for (int w = 0; w < WORDS; w++) s[w] = first[w];
#pragma unroll
  for (int round = 0; round < 8; round += 2) {
    quarter_round(s, 0, 4, 8, 12);
    quarter_round(s, 1, 5, 9, 13);
    quarter_round(s, 2, 6, 10, 14);
    quarter_round(s, 3, 7, 11, 15);
    quarter_round(s, 0, 5, 10, 15);
    quarter_round(s, 1, 6, 11, 12);
    quarter_round(s, 2, 7, 8, 13);
    quarter_round(s, 3, 4, 9, 14);
  }
  factors += (size_t)image * values;
#pragma unroll
  for (int w = 0; w < WORDS; w++) {
    unsigned value = block * WORDS + w;
    if (value < values) factors[value] = s[w] + first[w] < threshold ? 0.0f : kept;
  }
}
