// Activation functions of 8 floats.

#pragma once

#include "common.h"

// exp: 2^n times the series of degree 6 on |r| <= ln 2 / 2, relative error 2e-7; infinity above 88.37.
INLINE __m256 exponential(__m256 x) {
    x = clamp(x, _mm256_set1_ps(-87.0f), _mm256_set1_ps(89.0f));
    __m256 n = nearest(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)));
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);  // ln 2 in two parts (Cephes)
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 sum = _mm256_set1_ps(1.0f / 720);
    const float factors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 6; i++) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(factors[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

INLINE __m256 swish(__m256 x, __m256 u) {  // x sigmoid(u)
    __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(x, _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), u))));
}

// x Phi(x), by erfc of Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
INLINE __m256 gelu(__m256 x) {
    __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f), z = _mm256_mul_ps(x, _mm256_set1_ps(0.70710678f));
    __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_andnot_ps(sign, z), _mm256_set1_ps(0.3275911f), one));
    __m256 sum = _mm256_set1_ps(1.061405429f);
    const float factors[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    for (int i = 0; i < 4; i++) sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(factors[i]));
    __m256 gauss = exponential(_mm256_xor_ps(sign, _mm256_mul_ps(z, z)));
    __m256 tail = _mm256_mul_ps(_mm256_mul_ps(sum, t), _mm256_mul_ps(gauss, _mm256_set1_ps(0.5f)));  // Phi(-|x|)
    return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, tail), tail, x));
}

INLINE __m256 gelu_tanh(__m256 x) {  // 0.5 x (1 + tanh u) = x sigmoid(2 u)
    __m256 inner = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044715f), _mm256_set1_ps(1.0f));
    return swish(x, _mm256_mul_ps(_mm256_mul_ps(x, inner), _mm256_set1_ps(1.59576912f)));
}

enum Post { NONE, RELU, GELU, GELU_TANH, SILU };

INLINE __m256 apply(enum Post post, __m256 x) {
    switch (post) {
        case RELU: return _mm256_max_ps(_mm256_setzero_ps(), x);
        case GELU: return gelu(x);
        case GELU_TANH: return gelu_tanh(x);
        case SILU: return swish(x, x);
        default: return x;
    }
}
