/* AMX, the matrix unit of some processors: "tiles" of 16 rows and 64 bytes.

   A product multiplies a tile of 16 rows and 32 columns with one that holds 32 rows of 16 columns as pairs: number [p][c]
   has rows 2 p and 2 p + 1 of column c. Every tile of numbers that is made here is 1 KB, one behind the other. */

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAIRS_OF = 32, TILE_NUMBERS = LANES * LANES };

typedef struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

/* gcc 12 believes that these two instructions touch 8 bytes of the 64, and leaves the others out. */
#define IN_MEMORY(shapes) __asm__ volatile("" ::"r"(shapes) : "memory")

/* Nor does it know that a load of a tile reads memory: what was written for one has to be there before the next line. */
#define WRITTEN __asm__ volatile("" ::: "memory")

/* Whether the system lets this process use the tiles; it has to be asked once (arch_prctl(2), XTILEDATA). */
static int amx_allowed(void) {
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return known;
}

/* All tiles of full size; the shapes that another library had are put back by `amx_leave`. */
static void amx_enter(TileShapes *before) {
    TileShapes full = {.palette = 1};
    for (int i = 0; i < 8; i++) full.bytes[i] = 64, full.rows[i] = 16;
    IN_MEMORY(before);
    _tile_storeconfig(before);
    IN_MEMORY(&full);
    _tile_loadconfig(&full);
}
static void amx_leave(const TileShapes *before) {
    IN_MEMORY(before);
    _tile_loadconfig(before);
}

INLINE __mmask16 first_of(size n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

/* (rows <= 16, columns <= 32) floats, rows ld apart -> a tile of pairs of its transposed, (32, 16); zeros elsewhere. */
static void pairs_of_turned(const float *from, size ld, size rows, size columns, float factor, uint32_t *tile) {
    uint32_t block[TILE_NUMBERS] __attribute__((aligned(64)));
    __m512 times = _mm512_set1_ps(factor);
    for (size i = 0; i < LANES; i++) {
        __m512 low = _mm512_setzero_ps(), high = low;
        if (i < rows) {
            low = _mm512_mul_ps(times, _mm512_maskz_loadu_ps(first_of(columns), from + i * ld));
            if (columns > LANES)
                high = _mm512_mul_ps(times, _mm512_maskz_loadu_ps(first_of(columns - LANES), from + i * ld + LANES));
        }
        _mm512_store_si512(block + i * LANES, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    turn_block((const float *)block, LANES, (float *)tile, LANES);
}

INLINE __m512i pair(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/* (rows <= 32, columns <= 16) floats -> a tile of pairs; zeros elsewhere. */
static void pairs_of_floats(const float *from, size ld, size rows, size columns, float factor, uint32_t *tile) {
    __m512 times = _mm512_set1_ps(factor);
    __mmask16 there = first_of(columns);
    for (size p = 0; p < LANES; p++) {
        __m512 even = _mm512_maskz_loadu_ps(2 * p < rows ? there : 0, from + 2 * p * ld);
        __m512 odd = _mm512_maskz_loadu_ps(2 * p + 1 < rows ? there : 0, from + (2 * p + 1) * ld);
        __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(times, even));
        __m256i high = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(times, odd));
        _mm512_storeu_si512(tile + p * LANES, pair(low, high));
    }
}

#endif
