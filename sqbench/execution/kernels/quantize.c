// Quantization of activations, in one pass over memory.
//
// The arithmetic is that of `quant/codec.py`, operation by operation, and so are the results, bit by bit.

#include "common.h"

typedef struct {
    const float *x;
    void *out;  // stored codes (uint8), or floats on the grid
    float *scale, *zero;
    long rows, depth;
    bool symmetric, fake;
    float levels, low, high;  // codes of the grid, as stored: 128 added
} Quantize;

INLINE __m256 on_grid(__m256 x, __m256 scale, __m256 zero, __m256 low, __m256 high, bool fake) {
    __m256 code = nearest(_mm256_div_ps(x, scale));
    // Faking leaves the zero-point out and clamps by shifted bounds.
    return fake ? _mm256_mul_ps(clamp(code, low, high), scale) : clamp(_mm256_add_ps(code, zero), low, high);
}

INLINE void quantize_run(const float *x, void *out, long count, float scale, float zero, float low, float high, bool fake) {
    if (fake && isnan(zero)) scale = NAN;  // then every value is
    float shift = fake ? zero + 128 : 0;
    __m256 s = _mm256_set1_ps(scale), z = _mm256_set1_ps(zero + 128);
    __m256 lo = _mm256_set1_ps(low - shift), hi = _mm256_set1_ps(high - shift);
    long i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256 v[4];
        for (int j = 0; j < 4; j++) v[j] = on_grid(_mm256_loadu_ps(x + i + 8 * j), s, z, lo, hi, fake);
        if (fake)
            for (int j = 0; j < 4; j++) _mm256_storeu_ps((float *)out + i + 8 * j, v[j]);
        else store_32_bytes((uint8_t *)out + i, v);
    }
    for (; i < count; i += 8) {
        __m256 v = on_grid(load(x + i, count - i), s, z, lo, hi, fake);
        if (fake) store((float *)out + i, v, count - i);
        else store_bytes((uint8_t *)out + i, v, count - i);
    }
}

static void quantize_any(const Quantize *p, long from, long count, float scale, float zero) {
    if (p->fake) quantize_run(p->x + from, (float *)p->out + from, count, scale, zero, p->low, p->high, true);
    else quantize_run(p->x + from, (uint8_t *)p->out + from, count, scale, zero, p->low, p->high, false);
}

INLINE void widen(__m256 *low, __m256 *high, __m256 *bad, __m256 x) {
    *low = _mm256_min_ps(x, *low);  // these two forget a nan
    *high = _mm256_max_ps(x, *high);
    *bad = _mm256_or_ps(*bad, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

INLINE float largest(__m256 x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// Range of a row, widened to 0; nan, both ends, where the row has one.
INLINE void range_of(const float *x, long count, float *low, float *high) {
    __m256 zero = _mm256_setzero_ps(), bad = zero, low_0 = zero, low_1 = zero, high_0 = zero, high_1 = zero;
    long i = 0;
    for (; i + 16 <= count; i += 16) {
        widen(&low_0, &high_0, &bad, _mm256_loadu_ps(x + i));
        widen(&low_1, &high_1, &bad, _mm256_loadu_ps(x + i + 8));
    }
    for (; i < count; i += 8) widen(&low_0, &high_0, &bad, load(x + i, count - i));
    *low = -largest(_mm256_sub_ps(zero, _mm256_min_ps(low_0, low_1)));
    *high = largest(_mm256_max_ps(high_0, high_1));
    if (_mm256_movemask_ps(bad)) *low = *high = NAN;
}

static void quantize_my_rows(void *arguments) {
    const Quantize *p = arguments;
    Range mine = my_share(p->rows);
    for (long row = mine.begin; row < mine.end; row++) {
        float low, high;
        range_of(p->x + row * p->depth, p->depth, &low, &high);
        float scale = p->symmetric ? (-low > high ? -low : high) / p->levels : (high - low) / p->levels;
        if (!(scale > 1.17549435e-38f)) scale = 1;  // dead, too narrow, or nan
        float zero = p->symmetric ? 0 : p->low - 128 - nearbyintf(low / scale);
        if (p->scale) p->scale[row] = scale;
        if (p->zero) p->zero[row] = zero;
        quantize_any(p, row * p->depth, p->depth, scale, zero);
    }
}

void quantize_rows(const float *x, void *out, float *scale, float *zero, long rows, long depth, int symmetric, int fake, float levels,
                   float low, float high, int threads) {
    Quantize p = {x, out, scale, zero, rows, depth, symmetric, fake, levels, low, high};
    team(quantize_my_rows, &p, (unsigned)threads, 0);
}

static void quantize_my_values(void *arguments) {
    const Quantize *p = arguments;
    Range mine = my_share((p->depth + 31) / 32);
    long from = mine.begin * 32, to = at_most(mine.end * 32, p->depth);
    if (to > from) quantize_any(p, from, to - from, *p->scale, *p->zero);
}

void quantize_static(const float *x, void *out, float scale, float zero, long count, int fake, float low, float high, int threads) {
    Quantize p = {.x = x, .out = out, .scale = &scale, .zero = &zero, .depth = count, .fake = fake, .low = low, .high = high};
    team(quantize_my_values, &p, (unsigned)threads, 0);
}
