/* Numbers and small products that the kernels are made of. Plain C with vector extensions; no library.

   A `reg` is what a register holds; LANES numbers are one with AVX-512, two with AVX2, four with NEON. A vector is never
   longer than that: gcc keeps longer ones in memory, and a product of them is twelve times as slow. */

#ifndef VENEER_COMMON_H
#define VENEER_COMMON_H

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TEXT(x) #x
#define PARALLEL(threads) _Pragma(TEXT(omp parallel num_threads(threads)))
#define BARRIER _Pragma("omp barrier")
#define SUMS(...) _Pragma(TEXT(omp simd reduction(+ : __VA_ARGS__))) /* of the loop behind it, side by side */
#define THREAD omp_get_thread_num()
#define TEAM omp_get_num_threads()

typedef uint16_t bf16;
typedef ptrdiff_t size;
#if defined(__AVX512F__)
enum { REG_BYTES = 64, ROWS = 8, COLUMNS = 2 }; /* ROWS, and COLUMNS of LANES, of the block of `gemm` that stays in registers */
#elif defined(__AVX2__)
enum { REG_BYTES = 32, ROWS = 6, COLUMNS = 1 };
#else
enum { REG_BYTES = 16, ROWS = 6, COLUMNS = 1 };
#endif
enum { LANES = 16, REG = REG_BYTES / 4, REGS = LANES / REG, LINE_BYTES = 64, PAGE_BYTES = 4096, ROWS_AHEAD = 4 };
typedef float reg __attribute__((vector_size(REG_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size most(size a, size b) { return a > b ? a : b; }
INLINE size up_to_lanes(size n) { return (n + LANES - 1) / LANES * LANES; }

/* Share `part` of `parts` of 0 to n - 1, in multiples of `step`: its first, and behind its last. */
INLINE void share(size n, size step, size part, size parts, size *first, size *end) {
    size blocks = (n + step - 1) / step;
    *first = least(n, blocks * part / parts * step);
    *end = least(n, blocks * (part + 1) / parts * step);
}

INLINE float load_bf16(const bf16 *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* To the nearest, ties to even, as PyTorch rounds; what arithmetic gives as NaN stays one. */
INLINE void store_bf16(bf16 *p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

INLINE float load_f32(const float *p) { return *p; }
INLINE void store_f32(float *p, float x) { *p = x; }

/* e^x to 2e-7 of itself: Cephes' reduction and polynomial (Moshier 1992). NaN stays NaN. */
INLINE float e_to_f32(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    int32_t bits = (int32_t)((uint32_t)((int32_t)n + 127) << 23);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* gcc has had clang's name for it since its version 12. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
typedef int32_t places __attribute__((vector_size(REG_BYTES)));
#define PAIRS(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#else
#define PAIRS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif

/* REG rows of REG floats -> the transposed square, in rounds that exchange halves of pairs of rows. */
INLINE void turn_square(const float *from, size ld, float *to, size ldto) {
    reg a[REG], b[REG];
    for (int i = 0; i < REG; i++) a[i] = *(const reg *)(from + i * ld);
#define ROUND(x, y, h, low, high) \
    for (int i = 0; i < REG; i++) y[i] = i & h ? PAIRS(x[i - h], x[i], high) : PAIRS(x[i], x[i + h], low);
#if defined(__AVX512F__)
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
    ROUND(a, b, 8, LOW8, HIGH8)
    ROUND(b, a, 4, LOW4, HIGH4)
    ROUND(a, b, 2, LOW2, HIGH2)
    ROUND(b, a, 1, LOW1, HIGH1)
#elif defined(__AVX2__)
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW1 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH1 1, 9, 3, 11, 5, 13, 7, 15
    ROUND(a, b, 4, LOW4, HIGH4)
    ROUND(b, a, 2, LOW2, HIGH2)
    ROUND(a, b, 1, LOW1, HIGH1)
    for (int i = 0; i < REG; i++) a[i] = b[i];
#else
#define LOW2 0, 1, 4, 5
#define HIGH2 2, 3, 6, 7
#define LOW1 0, 4, 2, 6
#define HIGH1 1, 5, 3, 7
    ROUND(a, b, 2, LOW2, HIGH2)
    ROUND(b, a, 1, LOW1, HIGH1)
#endif
#undef ROUND
    for (int i = 0; i < REG; i++) *(reg *)(to + i * ldto) = a[i];
}

/* LANES rows of LANES floats -> the transposed block. */
INLINE void turn_block(const float *from, size ld, float *to, size ldto) {
    for (size i = 0; i < LANES; i += REG)
        for (size j = 0; j < LANES; j += REG) turn_square(from + i * ld + j, ld, to + j * ldto + i, ldto);
}

/* The same to 3e-6 of itself, for what is rounded to bf16: 2^r on -1/2 to 1/2 by its best polynomial of degree 4. */
INLINE float e_to_bf16(float x) {
    float t = x * 1.44269504f;
    t = t < -126.0f ? -126.0f : t;
    t = t > 126.0f ? 126.0f : t;
    float n = rintf(t), r = t - n, p = 9.5701e-3f;
    p = fmaf(p, r, 5.591786e-2f);
    p = fmaf(p, r, 0.24024745f);
    p = fmaf(p, r, 0.69312181f);
    p = fmaf(p, r, 0.99999926f);
    int32_t bits;
    memcpy(&bits, &p, 4);
    bits += (int32_t)((uint32_t)(int32_t)n << 23);
    memcpy(&p, &bits, 4);
    return p;
}

/* c (m, n) = [from +] [bias +] a (m, k) b (k, n) for one block of m <= ROWS rows and `columns` LANES; from and bias may be
   NULL, from may be c. a_m and a_k are the distances of a's rows and columns, so that a may be a transposed matrix. */
INLINE void gemm_block(const int m, const int columns, size k, const float *a, size a_m, size a_k, const float *b,
                       size ldb, const float *from, size ldfrom, const float *bias, float *c, size ldc) {
    reg sum[ROWS][COLUMNS * REGS];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < columns * REGS; j++) sum[i][j] = from ? *(const reg *)(from + i * ldfrom + j * REG) : (reg){0};
    if (bias)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < columns * REGS; j++) sum[i][j] += *(const reg *)(bias + j * REG);
    for (size p = 0; p < k; p++) {
        reg row[COLUMNS * REGS];
        for (int j = 0; j < columns * REGS; j++) row[j] = *(const reg *)(b + p * ldb + j * REG);
        for (int i = 0; i < m; i++) {
            float x = a[i * a_m + p * a_k];
            for (int j = 0; j < columns * REGS; j++) sum[i][j] += row[j] * x;
        }
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < columns * REGS; j++) *(reg *)(c + i * ldc + j * REG) = sum[i][j];
}

/* The same for any number of rows. */
INLINE void gemm_columns(const int columns, size m, size k, const float *a, size a_m, size a_k, const float *b,
                         size ldb, const float *from, size ldfrom, const float *bias, float *c, size ldc) {
    size i = 0;
#define BLOCK(r) \
    gemm_block(r, columns, k, a + i * a_m, a_m, a_k, b, ldb, from ? from + i * ldfrom : NULL, ldfrom, bias, c + i * ldc, ldc)
    for (; i + ROWS <= m; i += ROWS) BLOCK(ROWS);
    switch (m - i) {
#define REST(r)   \
    case r:       \
        BLOCK(r); \
        break;
        REST(1) REST(2) REST(3) REST(4) REST(5)
#if defined(__AVX512F__)
        REST(6) REST(7)
#endif
#undef REST
    }
#undef BLOCK
}

/* c (m, n) = [c +] a (m, k) b (k, n), n a multiple of LANES. Sums run over k in order, whatever m and n are. */
static void gemm(size m, size n, size k, const float *a, size a_m, size a_k, const float *b, size ldb, float *c,
                 size ldc, int add) {
    size j = 0;
    for (; j + COLUMNS * LANES <= n; j += COLUMNS * LANES)
        gemm_columns(COLUMNS, m, k, a, a_m, a_k, b + j, ldb, add ? c + j : NULL, ldc, NULL, c + j, ldc);
    for (; j < n; j += LANES)
        gemm_columns(1, m, k, a, a_m, a_k, b + j, ldb, add ? c + j : NULL, ldc, NULL, c + j, ldc);
}

/* `factor` from (rows, columns), rows ld apart -> (columns, rows), rows ldto >= rows apart. Where ldto reaches the next
   multiple of LANES, what stands between is zero. */
static void turn_padded(const float *from, size ld, size rows, size columns, float *to, size ldto, float factor) {
    float block[LANES * LANES] __attribute__((aligned(64))), turned[LANES * LANES] __attribute__((aligned(64)));
    for (size i = 0; i < rows; i += LANES)
        for (size j = 0; j < columns; j += LANES) {
            size m = least(LANES, rows - i), n = least(LANES, columns - j);
            if (m < LANES || n < LANES) memset(block, 0, sizeof(block));
            for (size a = 0; a < m; a++)
                for (size b = 0; b < n; b++) block[a * LANES + b] = from[(i + a) * ld + j + b] * factor;
            turn_block(block, LANES, turned, LANES);
            size wide_to = least(LANES, ldto - i);
            for (size b = 0; b < n; b++) memcpy(to + (j + b) * ldto + i, turned + b * LANES, wide_to * sizeof(float));
        }
}

/* An adapter's part of a group of layers; see lora.h. `at`: its first column in (M, ld). */
typedef struct {
    const float *A, *B;
    float *of_A, *of_B;
    size r, start, outputs, at;
    float scaling;
} Part;

enum { TILE = 32, CHUNK = 128 }; /* rows and columns of what is widened at a time: 16 KB */

/* Floats of scratch for each thread, and of what they share, where x is (M, K) and y is (M, N); for `ld` see lora.h. */
size lora_floats(size M, size K, size N, size ld) {
    return most(most(ROWS * up_to_lanes(most(K, N)), (TILE + ld) * CHUNK), (M + TILE) * TILE);
}
size lora_shared(size M, size K, size N, size ld) { return (K + N + 2 * (M + TILE)) * ld; }

#endif
