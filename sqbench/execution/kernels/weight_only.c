// Float activations times int4 or int8 weights with a scale and a zero-point per group.
//
// Codes are stored unsigned, 32 bits holding neighbouring inputs of one output, panels of 16 outputs side by side. A field is not
// shifted down but converted where it lies, as code 2^(bits j), and x carries the factor 2^(-bits j): both are exact. The offset
// that made codes unsigned is subtracted from the sums: it costs a digit where codes are small, and no time.

#include "common.h"

typedef struct {
    const float *x, *scale, *bias;
    const int16_t *zero;  // like scale: [groups, columns]
    const int32_t *words;
    float *out, *scaled, *x_sums;
    long rows, columns, depth, groups;
    int bits;
} WeightOnly;

// The values of field j of 8 words, times 2^(bits j) except for the last.
INLINE __m256 field(__m256i words, int j, const int bits) {
    bool last = (j + 1) * bits == 32;
    __m256i mask = _mm256_set1_epi32((int)(((1u << bits) - 1) << (bits * j % 32)));
    return _mm256_cvtepi32_ps(last ? _mm256_srli_epi32(words, 32 - bits) : _mm256_and_si256(words, mask));
}

INLINE void panel_rows(const WeightOnly *p, const int32_t *words, long column, long row, const int bits, const int rows) {
    enum { CHAINS = 4 };
    const int fields = 32 / bits, chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;  // enough sums in flight to hide the latency of one
    long group = p->depth / p->groups, left = p->columns - column;
    __m256 total[4][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) total[r][v] = p->bias ? load(p->bias + column + 8 * v, left - 8 * v) : _mm256_setzero_ps();
    for (long g = 0; g < p->groups; g++) {
        __m256 sum[CHAINS][2];
        for (int c = 0; c < rows * chains; c++) sum[c][0] = sum[c][1] = _mm256_setzero_ps();
        const float *x[4];
        for (int r = 0; r < rows; r++) x[r] = p->scaled + (row + r) * p->depth + g * group;
        for (long k = 0; k < group; k += fields, words += PANEL) {
            __m256i word[2] = {_mm256_loadu_si256((const __m256i *)words), _mm256_loadu_si256((const __m256i *)words + 1)};
#pragma GCC unroll 8
            for (int j = 0; j < fields; j++) {
                __m256 w[2] = {field(word[0], j, bits), field(word[1], j, bits)};
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    __m256 one = _mm256_broadcast_ss(x[r] + k + j);
                    int c = r * chains + j % chains;
                    for (int v = 0; v < 2; v++) sum[c][v] = _mm256_fmadd_ps(w[v], one, sum[c][v]);
                }
            }
        }
        for (int v = 0; v < 2; v++) {
            long at = g * p->columns + column + 8 * v, count = left - 8 * v;
            if (count <= 0) break;
            __m256 scale = load(p->scale + at, count), zero = load_shorts(p->zero + at, count);
            zero = _mm256_add_ps(zero, _mm256_set1_ps((float)(1 << (bits - 1))));
            for (int r = 0; r < rows; r++) {
                __m256 products = sum[r * chains][v];
                for (int c = 1; c < chains; c++) products = _mm256_add_ps(products, sum[r * chains + c][v]);
                products = _mm256_fnmadd_ps(zero, _mm256_set1_ps(p->x_sums[(row + r) * p->groups + g]), products);
                total[r][v] = _mm256_fmadd_ps(scale, products, total[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++)
            if (left > 8 * v) store(p->out + (row + r) * p->columns + column + 8 * v, total[r][v], left - 8 * v);
}

INLINE void panel_of(const WeightOnly *p, const int32_t *words, long column, const int bits) {
    for (long row = 0; row < p->rows; row += 4) switch (p->rows - row) {
        case 1: panel_rows(p, words, column, row, bits, 1); break;
        case 2: panel_rows(p, words, column, row, bits, 2); break;
        case 3: panel_rows(p, words, column, row, bits, 3); break;
        default: panel_rows(p, words, column, row, bits, 4);
    }
}

static void weight_only_panels(void *arguments) {
    const WeightOnly *p = arguments;
    Range mine = my_share((p->columns + PANEL - 1) / PANEL);
    for (long c = mine.begin; c < mine.end; c++) {
        const int32_t *words = p->words + c * p->depth * p->bits / 32 * PANEL;
        if (p->bits == 4) panel_of(p, words, c * PANEL, 4);
        else panel_of(p, words, c * PANEL, 8);
    }
}

void weight_only_linear(const float *x, const int32_t *words, const float *scale, const int16_t *zero, const float *bias, float *out,
                        long rows, long columns, long depth, long groups, int bits, int threads) {
    float *scaled = scratch((size_t)(rows * (depth + groups)) * sizeof(float)), *x_sums = scaled + rows * depth;
    float factor[8];
    for (int i = 0; i < 8; i++) factor[i] = i % (32 / bits) == 32 / bits - 1 ? 1.0f : ldexpf(1.0f, -bits * (i % (32 / bits)));
    __m256 factors = _mm256_loadu_ps(factor);
    for (long g = 0, size = depth / groups; g < rows * groups; g++) {  // groups of all rows lie one behind the other
        __m256 sum = _mm256_setzero_ps();
        for (long k = g * size; k < (g + 1) * size; k += 8) {
            __m256 values = _mm256_loadu_ps(x + k);
            sum = _mm256_add_ps(sum, values);
            _mm256_storeu_ps(scaled + k, _mm256_mul_ps(values, factors));
        }
        float parts[8];
        _mm256_storeu_ps(parts, sum);
        x_sums[g] = ((parts[0] + parts[4]) + (parts[1] + parts[5])) + ((parts[2] + parts[6]) + (parts[3] + parts[7]));
    }
    WeightOnly p = {x, scale, bias, zero, words, out, scaled, x_sums, rows, columns, depth, groups, bits};
    team(weight_only_panels, &p, (unsigned)threads, 0);
}

// 8 vectors of 8 outputs each, to 8 outputs of 8 inputs each.
INLINE void transpose(__m256 v[8]) {
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xEE);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
}

INLINE void dequantize_half(const WeightOnly *p, const int32_t *words, long column, const int bits) {
    const int fields = 32 / bits;
    long count = at_most(p->columns - column, 8), group = p->depth / p->groups;
    __m256 scale = _mm256_setzero_ps(), zero = scale, offset = _mm256_set1_ps((float)(1 << (bits - 1)));
    for (long k = 0; k < p->depth; k += 8) {
        if (k % group == 0) {
            scale = load(p->scale + k / group * p->columns + column, count);
            zero = load_shorts(p->zero + k / group * p->columns + column, count);
        }
        __m256 v[8];
        for (int i = 0; i < 8; i++) {
            __m256i word = _mm256_loadu_si256((const __m256i *)(words + (k + i) / fields * PANEL));
            word = _mm256_srli_epi32(word, bits * (i % fields));
            __m256 code = _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32((1 << bits) - 1)));
            v[i] = _mm256_mul_ps(_mm256_sub_ps(_mm256_sub_ps(code, offset), zero), scale);
        }
        transpose(v);
        for (long i = 0; i < count; i++) _mm256_storeu_ps(p->out + (column + i) * p->depth + k, v[i]);
    }
}

static void dequantize_panels(void *arguments) {
    const WeightOnly *p = arguments;
    Range mine = my_share((p->columns + 7) / 8);
    for (long c = mine.begin; c < mine.end; c++) {
        const int32_t *words = p->words + c / 2 * p->depth * p->bits / 32 * PANEL + c % 2 * 8;
        if (p->bits == 4) dequantize_half(p, words, c * 8, 4);
        else dequantize_half(p, words, c * 8, 8);
    }
}

void dequantize(const int32_t *words, const float *scale, const int16_t *zero, float *out, long columns, long depth, long groups,
                int bits, int threads) {
    WeightOnly p = {.scale = scale, .zero = zero, .words = words, .out = out, .columns = columns, .depth = depth, .groups = groups,
                    .bits = bits};
    team(dequantize_panels, &p, (unsigned)threads, 0);
}
