// What the kernels share: threads, and vectors of 8 floats (AVX2 and FMA). `native.py` documents every kernel and checks shapes;
// `compiler.py` compiles the folder.
//
// Threads are those of the OpenMP runtime that torch has loaded, entered through its GOMP interface: a runtime of our own would be
// a second pool of threads, spinning on the same cores. So any compiler will do, without OpenMP of its own.

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define INTERNAL __attribute__((visibility("hidden")))

enum { PANEL = 16 };  // outputs that lie side by side in a packed weight

// ---- Threads -------------------------------------------------------------------------------------------------------------------

typedef struct { long begin, end; } Range;

INTERNAL extern void (*team)(void (*work)(void *), void *arguments, unsigned threads, unsigned flags);  // GOMP_parallel
INTERNAL extern int (*team_rank)(void), (*team_size)(void);

// What part `part` of `parts` does of `items` units of work.
INLINE Range share(long items, long part, long parts) {
    return (Range){items * part / parts, items * (part + 1) / parts};
}

INLINE Range my_share(long items) { return share(items, team_rank(), team_size()); }

// Memory of the calling thread that lives from call to call: pages that are fresh in every call cost more than a small product.
INTERNAL void *scratch(size_t bytes);

INLINE long at_most(long a, long b) { return a < b ? a : b; }
INLINE long at_least(long a, long b) { return a > b ? a : b; }

// ---- Vectors of 8 floats ---------------------------------------------------------------------------------------------------------

INLINE __m256i first(long count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)at_most(count, 8)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `count` values at p (8 if more), zeros behind them.
INLINE __m256 load(const float *p, long count) { return count >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(count)); }

// The same of 16-bit integers.
INLINE __m256 load_shorts(const int16_t *p, long count) {
    if (count >= 8) return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p)));
    int16_t values[8] = {0};
    memcpy(values, p, sizeof(int16_t) * (size_t)count);
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)values)));
}

INLINE void store(float *p, __m256 values, long count) {
    if (count >= 8) _mm256_storeu_ps(p, values);
    else _mm256_maskstore_ps(p, first(count), values);
}

INLINE void store_bytes(uint8_t *p, __m256 values, long count) {
    __m256i words = _mm256_cvtps_epi32(values);
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    uint8_t bytes[8];
    _mm_storel_epi64((__m128i *)bytes, _mm_packus_epi16(halves, halves));
    memcpy(p, bytes, count >= 8 ? 8 : (size_t)count);
}

INLINE void store_32_bytes(uint8_t *p, const __m256 values[4]) {
    __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(values[0]), _mm256_cvtps_epi32(values[1]));
    __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(values[2]), _mm256_cvtps_epi32(values[3]));
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works on halves of 128 bits
    _mm256_storeu_si256((__m256i *)p, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
}

// The second operand is returned where either is nan: in this order nan stays nan, as in torch.
INLINE __m256 clamp(__m256 x, __m256 low, __m256 high) { return _mm256_min_ps(high, _mm256_max_ps(low, x)); }

INLINE __m256 nearest(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
