/* A matrix unit for processors that have none, so that the kernels for it are tested wherever there is a compiler.

   Stands in for the compiler's own <immintrin.h> and has what the kernels ask of it: AMX's tiles in memory, and AVX-512's
   instructions in loops, with the semantics of Intel's Intrinsics Guide. Tiles are of full size, as the kernels want them.
   The system's leave to use the tiles (arch_prctl) is granted. */

#ifndef VENEER_EMULATED_H
#define VENEER_EMULATED_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define syscall(...) 0

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef uint16_t __m512bh __attribute__((vector_size(64), may_alias));
typedef uint16_t __m256bh __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;
typedef uint32_t of_16 __attribute__((vector_size(64), may_alias));

#define EMULATED static inline __attribute__((always_inline, unused))
#define EACH for (int i = 0; i < 16; i++)

/* Memory. An address that has to be aligned is looked at: the instruction would fault. */
EMULATED const void *aligned(const void *p) {
    if ((uintptr_t)p % 64) __builtin_trap();
    return p;
}
EMULATED __m512 _mm512_loadu_ps(const void *p) { __m512 x; memcpy(&x, p, 64); return x; }
EMULATED __m512 _mm512_load_ps(const void *p) { return _mm512_loadu_ps(aligned(p)); }
EMULATED __m512i _mm512_loadu_si512(const void *p) { __m512i x; memcpy(&x, p, 64); return x; }
EMULATED __m256i _mm256_loadu_si256(const __m256i *p) { __m256i x; memcpy(&x, p, 32); return x; }
EMULATED void _mm512_storeu_ps(void *p, __m512 x) { memcpy(p, &x, 64); }
EMULATED void _mm512_storeu_si512(void *p, __m512i x) { memcpy(p, &x, 64); }
EMULATED void _mm512_store_si512(void *p, __m512i x) { _mm512_storeu_si512((void *)aligned(p), x); }
EMULATED void _mm256_storeu_si256(__m256i *p, __m256i x) { memcpy(p, &x, 32); }
EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void *p) {
    __m512 x = {0};
    EACH if (mask >> i & 1) memcpy((char *)&x + 4 * i, (const char *)p + 4 * i, 4); /* what is masked is not touched */
    return x;
}
#define _MM_HINT_T1 2
#define _mm_prefetch(p, hint) ((void)(p))

/* Numbers. */
EMULATED __m512 _mm512_setzero_ps(void) { return (__m512){0}; }
EMULATED __m256i _mm256_setzero_si256(void) { return (__m256i){0}; }
EMULATED __m512 _mm512_set1_ps(float a) { __m512 x; EACH x[i] = a; return x; }
EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { EACH c[i] = fmaf(a[i], b[i], c[i]); return c; }
EMULATED __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) { EACH c[i] = fmaf(a[i], b[i], -c[i]); return c; }
EMULATED __m512 _mm512_scalef_ps(__m512 a, __m512 b) { EACH a[i] = ldexpf(a[i], (int)fmaxf(fminf(b[i], 400), -400)); return a; }
EMULATED __m512 _mm512_roundscale_ps(__m512 a, int how) { /* 8: to the nearest whole number */
    if (how != 8) __builtin_trap();
    EACH a[i] = rintf(a[i]);
    return a;
}
EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) { EACH a[i] = mask >> i & 1 ? a[i] : 0; return a; }
EMULATED __m512 _mm512_maskz_sub_ps(__mmask16 mask, __m512 a, __m512 b) { return _mm512_maskz_mov_ps(mask, a - b); }
EMULATED __m512 _mm512_mask3_fmadd_ps(__m512 a, __m512 b, __m512 c, __mmask16 mask) {
    EACH if (mask >> i & 1) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}
EMULATED __m512 _mm512_mask_max_ps(__m512 other, __mmask16 mask, __m512 a, __m512 b) {
    EACH other[i] = mask >> i & 1 ? (a[i] > b[i] ? a[i] : b[i]) : other[i];
    return other;
}
EMULATED float _mm512_reduce_max_ps(__m512 a) { float m = a[0]; EACH m = a[i] > m ? a[i] : m; return m; }
EMULATED float _mm512_reduce_add_ps(__m512 a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

/* Words, and bf16: rounded to the nearest, ties to even. */
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
EMULATED __m512i _mm512_slli_epi32(__m512i a, unsigned n) { return (__m512i)((of_16)a << n); }
EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) { of_16 x; EACH x[i] = ((__m256bh)a)[i]; return (__m512i)x; }
EMULATED uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMULATED __m256bh _mm512_cvtneps_pbh(__m512 a) { __m256bh x; EACH x[i] = rounded(a[i]); return x; }
EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
    __m512bh x;
    EACH x[i] = rounded(low[i]), x[16 + i] = rounded(high[i]);
    return x;
}

/* Tiles: eight of 16 rows and 64 bytes, a thread's own. Those that were not set up, or hold what another product left,
   give NaN. */
static _Thread_local struct { char shapes[64]; uint32_t rows[8][16][16]; } tiles_of_thread;

EMULATED void _tile_storeconfig(void *to) { memcpy(to, tiles_of_thread.shapes, 64); }
EMULATED void _tile_loadconfig(const void *from) {
    memcpy(tiles_of_thread.shapes, from, 64);
    memset(tiles_of_thread.rows, 0xff, sizeof tiles_of_thread.rows);
}
EMULATED uint32_t (*tile_of(int t))[16] {
    if (tiles_of_thread.shapes[0] != 1) __builtin_trap(); /* as the processor does */
    return tiles_of_thread.rows[t];
}
EMULATED void tile_loaded(int t, const char *from, ptrdiff_t apart) {
    uint32_t (*tile)[16] = tile_of(t);
    EACH memcpy(tile[i], from + i * apart, 64);
}
EMULATED void tile_stored(int t, char *to, ptrdiff_t apart) {
    uint32_t (*tile)[16] = tile_of(t);
    EACH memcpy(to + i * apart, tile[i], 64);
}
#define _tile_loadd(t, from, apart) tile_loaded(t, (const char *)(from), apart)
#define _tile_stream_loadd(t, from, apart) tile_loaded(t, (const char *)(from), apart)
#define _tile_stored(t, to, apart) tile_stored(t, (char *)(to), apart)
EMULATED void _tile_zero(int t) { memset(tile_of(t), 0, 1024); }

/* c (16, 16) floats += the pairs of a's rows times the pairs of b's columns, even ones first. */
static void _tile_dpbf16ps(int c, int a, int b) {
    uint32_t (*left)[16] = tile_of(a), (*right)[16] = tile_of(b);
    float sums[16], even, odd, x, y;
    EACH {
        memcpy(sums, tile_of(c)[i], 64);
        for (int k = 0; k < 16; k++) {
            uint32_t pair = left[i][k];
            memcpy(&even, &(uint32_t){pair << 16}, 4);
            memcpy(&odd, &(uint32_t){pair & 0xffff0000u}, 4);
            for (int j = 0; j < 16; j++) {
                memcpy(&x, &(uint32_t){right[k][j] << 16}, 4);
                memcpy(&y, &(uint32_t){right[k][j] & 0xffff0000u}, 4);
                sums[j] += even * x;
                sums[j] += odd * y;
            }
        }
        memcpy(tile_of(c)[i], sums, 64);
    }
}

#endif
