// Uint8 activations times int8 weights, summed in int32.
//
// Weights come in panels of 16 outputs, for every pair of inputs 16 x 2 bytes. Operands are widened to 16 bits for vpmaddwd, whose
// sums are exact; vpmaddubsw, twice as wide, saturates. Rows of x are widened once for a block that stays in L2, panels once for all
// rows of a block; 6 x 16 sums are held in registers.

#include "functions.h"

enum { TILE = 6, BLOCK_BYTES = 256 * 1024, DEPTH = 640, ROWS_TO_WIDEN = 4 * TILE };

typedef struct {
    const uint8_t *x;
    const int8_t *weight;
    const float *scale, *bias, *x_scale, *x_zero;  // of x: one for all rows, or one for each
    const int32_t *sums;
    void *out;
    long rows, columns, depth, x_step;
    enum Post post;
    bool requantize;
    float out_scale, out_zero, out_low, out_high;
    long row_parts, column_parts;
} Product;

// Sums are variables of their own: GCC keeps an array of them in memory.
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define START(r) \
    __m256i left##r = r < rows && add ? _mm256_load_si256((__m256i *)(sums + r * PANEL)) : _mm256_setzero_si256(); \
    __m256i right##r = r < rows && add ? _mm256_load_si256((__m256i *)(sums + r * PANEL) + 1) : _mm256_setzero_si256();
#define ADD(r) \
    if (r < rows) { \
        int32_t two; \
        memcpy(&two, x + r * stride + 2 * p, 4); \
        __m256i both = _mm256_set1_epi32(two); \
        left##r = _mm256_add_epi32(left##r, _mm256_madd_epi16(both, w_left)); \
        right##r = _mm256_add_epi32(right##r, _mm256_madd_epi16(both, w_right)); \
    }
#define END(r) \
    if (r < rows) { \
        _mm256_store_si256((__m256i *)(sums + r * PANEL), left##r); \
        _mm256_store_si256((__m256i *)(sums + r * PANEL) + 1, right##r); \
    }

INLINE void tile(const int16_t *x, long stride, const void *weight, bool wide, long pairs, int32_t *sums, bool add, const int rows) {
    EACH_ROW(START)
    for (long p = 0; p < pairs; p++) {
        __m256i w_left, w_right;
        if (wide) {
            w_left = _mm256_load_si256((const __m256i *)weight + 2 * p);
            w_right = _mm256_load_si256((const __m256i *)weight + 2 * p + 1);
        } else {
            w_left = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weight + 2 * p));
            w_right = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weight + 2 * p + 1));
        }
        EACH_ROW(ADD)
    }
    EACH_ROW(END)
}

INLINE void any_tile(const int16_t *x, long stride, const void *w, bool wide, long pairs, int32_t *sums, bool add, long rows) {
    switch (rows) {
        case 1: tile(x, stride, w, wide, pairs, sums, add, 1); break;
        case 2: tile(x, stride, w, wide, pairs, sums, add, 2); break;
        case 3: tile(x, stride, w, wide, pairs, sums, add, 3); break;
        case 4: tile(x, stride, w, wide, pairs, sums, add, 4); break;
        case 5: tile(x, stride, w, wide, pairs, sums, add, 5); break;
        default: tile(x, stride, w, wide, pairs, sums, add, TILE);
    }
}

static void wide_tile(const int16_t *x, long stride, const void *w, long pairs, int32_t *sums, bool add, long rows) {
    any_tile(x, stride, w, true, pairs, sums, add, rows);
}

static void narrow_tile(const int16_t *x, long stride, const void *w, long pairs, int32_t *sums, bool add, long rows) {
    any_tile(x, stride, w, false, pairs, sums, add, rows);
}

// Sums of one row of a panel to outputs: x_scale scale (sum - x_zero column_sum) + bias, then the function, then codes if wanted.
INLINE void finish(const Product *p, const int32_t *sums, long row, long column, enum Post post) {
    __m256 x_scale = _mm256_set1_ps(p->x_scale[row * p->x_step]);
    __m256i x_zero = _mm256_set1_epi32((int32_t)p->x_zero[row * p->x_step]);
    for (int v = 0; v < 2; v++, sums += 8, column += 8) {
        long count = p->columns - column;
        if (count <= 0) return;
        __m256i column_sums = _mm256_castps_si256(load((const float *)(p->sums + column), count));
        __m256i sum = _mm256_sub_epi32(_mm256_load_si256((const __m256i *)sums), _mm256_mullo_epi32(x_zero, column_sums));
        __m256 scale = _mm256_mul_ps(x_scale, load(p->scale + column, count));
        __m256 bias = p->bias ? load(p->bias + column, count) : _mm256_setzero_ps();
        __m256 y = apply(post, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, bias));
        if (p->requantize) {
            y = _mm256_add_ps(nearest(_mm256_div_ps(y, _mm256_set1_ps(p->out_scale))), _mm256_set1_ps(p->out_zero));
            y = clamp(y, _mm256_set1_ps(p->out_low), _mm256_set1_ps(p->out_high));
            store_bytes((uint8_t *)p->out + row * p->columns + column, y, count);
        } else store((float *)p->out + row * p->columns + column, y, count);
    }
}

static void finish_panel(const Product *p, const int32_t *sums, long row, long rows, long column) {
    switch (p->post) {  // outside of the loop: the functions are long
        case NONE: for (long r = 0; r < rows; r++) finish(p, sums + r * PANEL, row + r, column, NONE); break;
        case RELU: for (long r = 0; r < rows; r++) finish(p, sums + r * PANEL, row + r, column, RELU); break;
        case GELU: for (long r = 0; r < rows; r++) finish(p, sums + r * PANEL, row + r, column, GELU); break;
        case GELU_TANH: for (long r = 0; r < rows; r++) finish(p, sums + r * PANEL, row + r, column, GELU_TANH); break;
        case SILU: for (long r = 0; r < rows; r++) finish(p, sums + r * PANEL, row + r, column, SILU); break;
    }
}

// The inputs of a row as int16, with a zero behind an odd number.
static void widen_row(const uint8_t *x, int16_t *to, long depth) {
    long k = 0;
    for (; k + 16 <= depth; k += 16)
        _mm256_storeu_si256((__m256i *)(to + k), _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(x + k))));
    for (; k < depth; k++) to[k] = x[k];
    to[depth] = 0;
}

static void product(void *arguments) {
    const Product *p = arguments;
    long pairs = (p->depth + 1) / 2, stride = (2 * pairs + 15) / 16 * 16 + 16;  // not a power of 2: rows would share cache sets
    long blocks = (2 * pairs + DEPTH - 1) / DEPTH, deep = (pairs + blocks - 1) / blocks, tiles = (p->rows + TILE - 1) / TILE;
    for (long part = team_rank(); part < p->row_parts * p->column_parts; part += team_size()) {
        Range rows = share(tiles, part / p->column_parts, p->row_parts);
        Range panels = share((p->columns + PANEL - 1) / PANEL, part % p->column_parts, p->column_parts);
        rows.begin *= TILE;
        rows.end = at_most(rows.end * TILE, p->rows);
        long block = at_most(at_least(BLOCK_BYTES / (2 * stride) / TILE, 1) * TILE, rows.end - rows.begin);
        if (block <= 0) continue;
        int16_t *panel = scratch((size_t)(2 * deep * PANEL * 2 + block * PANEL * 4 + block * stride * 2));
        int32_t *sums = (int32_t *)(panel + 2 * deep * PANEL);
        int16_t *x = (int16_t *)(sums + block * PANEL);
        for (long row = rows.begin; row < rows.end; row += block) {
            long count = at_most(block, rows.end - row);
            for (long r = 0; r < count; r++) widen_row(p->x + (row + r) * p->depth, x + r * stride, p->depth);
            for (long c = panels.begin; c < panels.end; c++) {
                for (long from = 0; from < pairs; from += deep) {
                    long length = at_most(deep, pairs - from);
                    const int8_t *weight = p->weight + (c * pairs + from) * PANEL * 2;
                    bool wide = count >= ROWS_TO_WIDEN;
                    if (wide)
                        for (long i = 0; i < length * 2; i++) {
                            __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weight + i));
                            _mm256_store_si256((__m256i *)panel + i, words);
                        }
                    for (long r = 0; r < count; r += TILE)
                        (wide ? wide_tile : narrow_tile)(x + r * stride + 2 * from, stride, wide ? (const void *)panel : weight, length,
                                                         sums + r * PANEL, from > 0, at_most(TILE, count - r));
                }
                finish_panel(p, sums, row, count, c * PANEL);
            }
        }
    }
}

void int8_linear(const uint8_t *x, const int8_t *weight, const float *scale, const float *x_scale, const float *x_zero, long x_step,
                 const int32_t *sums, const float *bias, void *out, long rows, long columns, long depth, int post, int requantize,
                 float out_scale, float out_zero, float out_low, float out_high, int threads) {
    long row_parts = at_most(at_least(rows / (8 * TILE), 1), threads);
    while (threads % row_parts) row_parts--;
    Product p = {x, weight, scale, bias, x_scale, x_zero, sums, out, rows, columns, depth, x_step, (enum Post)post, requantize,
                 out_scale, out_zero, out_low, out_high, row_parts, threads / row_parts};
    team(product, &p, (unsigned)threads, 0);
}
