/* Products with a frozen weight that was laid into tiles once, for bf16 with AMX; see amx.h.

   A weight (N, K) stands as N / 32 panels of K / 32 times two tiles of pairs: 32 inputs of 16 outputs, and of the 16
   outputs behind them. A thread has panels of its own, so that each is read from memory once, or with many rows, which then
   are more to read, rows of its own; it fetches the next panel while it computes. Some steps of a panel stay in the first cache for all rows; the rows' own pass it by. Sums run over
   the inputs in order, whatever M and the number of threads are. */

#ifdef HAS_AMX

enum {
    PANEL = 32,                   /* outputs and rows of the block whose sums stay in four tiles */
    PANEL_NUMBERS = PANEL * PANEL,
    LONGEST = 1536 / PAIRS_OF,    /* steps of 32 inputs at a time: what is read again of x then stays in the L2 cache */
    ROOM_OF_X = 768 << 10,        /* bytes of x in it */
    STEPS = 16,                   /* of a panel that stay in the L1 cache: 32 KB */
    LINE = 64,
    AT_A_TIME = 2,                /* rows of the last block that are rounded and stored beside a step of the next */
    AHEAD = 8,                    /* rows before their turn is theirs in the output fetched */
};

/* What is added to the outputs from `start` on: left (M, ld) times tiles, those of 16 columns `steps` behind each other. */
typedef struct {
    size start, outputs;
    const bf16 *left;
    size ld;
    const uint32_t *tiles;
    size steps;
} Beside;

/* The weight in tiles, what is added to its product, bias (N,) and residual (M, N) or NULL, and where it goes. */
typedef struct {
    const bf16 *tiles, *bias, *residual;
    bf16 *y; /* (M, N) */
} Frozen;

/* w (N, K), or (K, N) if `transposed` -> its tiles; N and K are multiples of 32. */
void frozen_tiles_bf16(const bf16 *w, int transposed, size N, size K, uint32_t *tiles, int threads) {
    PARALLEL(threads) {
        size first, end;
        share(N, PANEL, THREAD, TEAM, &first, &end);
        uint32_t *to = tiles + first * K / 2;
        for (size n = first; n < end; n += PANEL)
            for (size k = 0; k < K; k += PAIRS_OF)
                for (size half = n; half < n + PANEL; half += LANES, to += TILE_NUMBERS) {
                    if (!transposed) {
                        turn_block((const float *)(w + half * K + k), K / 2, (float *)to, LANES);
                        continue;
                    }
                    for (size p = 0; p < LANES; p++) {
                        const bf16 *at = w + (k + 2 * p) * N + half;
                        _mm512_storeu_si512(to + p * LANES, pair(_mm256_loadu_si256((const __m256i *)at),
                                                                 _mm256_loadu_si256((const __m256i *)(at + N))));
                    }
                }
    }
}

/* Into how many parts its steps are divided, and the steps of each but the last, which may have fewer. */
static size parts_of(size K) { return (K / PAIRS_OF + LONGEST - 1) / LONGEST; }
static size steps_of_part(size K) { return (K / PAIRS_OF + parts_of(K) - 1) / parts_of(K); }

/* Rows at a time, a multiple of 32: about equal shares of M, of which none is more than `most_rows`. */
static size most_rows(size K) {
    size bytes = steps_of_part(K) * PAIRS_OF * sizeof(bf16);
    return most(ROOM_OF_X / bytes / PANEL, 1) * PANEL;
}
static size rows_at_a_time(size M, size K) {
    size blocks = (M + PANEL - 1) / PANEL, most_blocks = most_rows(K) / PANEL;
    size times = (blocks + most_blocks - 1) / most_blocks;
    return times ? (blocks + times - 1) / times * PANEL : PANEL;
}

/* What one thread computes of a product (M, N): rows from `top` to `bottom` - 1, columns from `first` to `end` - 1. */
typedef struct {
    size top, bottom, first, end;
} Region;

/* Whether threads have rows of their own, and not columns; measured. */
INLINE int by_rows(size M, size N) { return M >= 256 + N / 12; }

static Region region_of(size M, size N, size part, size parts) {
    Region r = {0, M, 0, N};
    if (by_rows(M, N))
        share(M, LANES, part, parts, &r.top, &r.bottom);
    else
        share(N, PANEL, part, parts, &r.first, &r.end);
    return r;
}

/* Floats of scratch for each thread: no region has more rows or columns than these. */
size frozen_floats_bf16(size M, size K, size N, int threads) {
    int rows_apart = by_rows(M, N);
    size rows = rows_apart ? (M + LANES * threads - 1) / (LANES * threads) * LANES : M;
    size columns = rows_apart ? N : (N + PANEL * threads - 1) / (PANEL * threads) * PANEL;
    rows = least((rows + PANEL - 1) / PANEL * PANEL, most_rows(K));
    return rows * (parts_of(K) > 1 ? columns : PANEL);
}

/* Four tiles of sums, for the rows and columns of y from `top` and `n` on: rows from `row` to `rows` - 1 are still to be
   rounded and stored. `more`: another panel of the thread follows. */
typedef struct {
    const float *sums;
    size top, n, row, rows;
    int more;
} Leaving;

INLINE __m512 widened(const bf16 *from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}

/* Fetches numbers that are wanted AHEAD rows later into the first cache; what the next panel wants of this row, a line
   further, into the second. Lines that are only written have to be there too: a store that waits for memory holds up all
   behind it, the sums' among them. */
INLINE void fetch_around(const bf16 *at, size ld, int write, int more) {
    if (write)
        __builtin_prefetch(at + AHEAD * ld, 1);
    else
        __builtin_prefetch(at + AHEAD * ld);
    if (more) _mm_prefetch(at + PANEL, _MM_HINT_T1);
}

INLINE void leave_row(const Frozen *w, size N, Leaving *block) {
    size i = block->row++, at = (block->top + i) * N + block->n;
    const float *sums = block->sums + i / LANES * 2 * TILE_NUMBERS + i % LANES * LANES;
    __m512 left = _mm512_load_ps(sums), right = _mm512_load_ps(sums + TILE_NUMBERS);
    fetch_around(w->y + at, N, 1, block->more);
    if (w->bias) {
        left = _mm512_add_ps(left, widened(w->bias + block->n));
        right = _mm512_add_ps(right, widened(w->bias + block->n + LANES));
    }
    if (w->residual) {
        fetch_around(w->residual + at, N, 0, block->more);
        left = _mm512_add_ps(left, widened(w->residual + at));
        right = _mm512_add_ps(right, widened(w->residual + at + LANES));
    }
    _mm512_storeu_si512(w->y + at, (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

/* What is fetched while the matrix unit works: the next panel, some lines a step. */
typedef struct {
    const char *next, *end;
    size lines;
} Fetching;

/* Add to the four tiles of sums: `steps` steps of 16 or 32 rows of `left`, ld apart, times two tiles each, which are
   `apart`. While the matrix unit works, rows of the last block leave and the next panel is fetched. */
INLINE void add_steps(size steps, const bf16 *left, size ld, int both, const uint32_t *first, const uint32_t *second,
                      size apart, const Frozen *w, size N, Leaving *block, Fetching *fetched) {
    for (size k = 0; k < steps; k++) {
        _tile_stream_loadd(4, left + k * PAIRS_OF, ld * 2);
        _tile_loadd(6, first + k * apart, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, second + k * apart, LINE);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
            _tile_stream_loadd(5, left + LANES * ld + k * PAIRS_OF, ld * 2);
            _tile_dpbf16ps(2, 5, 6);
        }
        for (int r = 0; r < AT_A_TIME && block->row < block->rows; r++) leave_row(w, N, block);
        if (both) _tile_dpbf16ps(3, 5, 7);
        for (size l = 0; l < fetched->lines && fetched->next < fetched->end; l++, fetched->next += LINE)
            _mm_prefetch(fetched->next, _MM_HINT_T1);
    }
}

INLINE void load_sums(const float *from) {
    _tile_loadd(0, from, LINE);
    _tile_loadd(1, from + TILE_NUMBERS, LINE);
    _tile_loadd(2, from + 2 * TILE_NUMBERS, LINE);
    _tile_loadd(3, from + 3 * TILE_NUMBERS, LINE);
}
INLINE void store_sums(float *to) {
    _tile_stored(0, to, LINE);
    _tile_stored(1, to + TILE_NUMBERS, LINE);
    _tile_stored(2, to + 2 * TILE_NUMBERS, LINE);
    _tile_stored(3, to + 3 * TILE_NUMBERS, LINE);
}
INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Add to the sums what stands beside the product for the columns from n on, and rows from i on. */
INLINE void add_beside(const Beside *beside, int count, size n, size i, int both, const Frozen *w, size N,
                       Leaving *block) {
    Fetching nothing = {0};
    for (int b = 0; b < count; b++) {
        const Beside *more = beside + b;
        if (n < more->start || n >= more->start + more->outputs) continue;
        const uint32_t *tiles = more->tiles + (n - more->start) / LANES * more->steps * TILE_NUMBERS;
        add_steps(more->steps, more->left + i * more->ld, more->ld, both, tiles, tiles + more->steps * TILE_NUMBERS,
                  TILE_NUMBERS, w, N, block, &nothing);
    }
}

/* A region of the product (M, N) of x (M, K), and of what stands `beside`; its rows are a multiple of 16, the columns of
   32. For one thread, which has entered the tiles; `scratch` as `frozen_floats_bf16` says.

   Sums that are not whole are kept: of all its panels where x is too long for the L2 cache, else of one. */
static void amx_product(const bf16 *x, const Frozen *w, size K, size N, const Beside *beside, int count,
                        const Region *region, float *scratch) {
    float sums[2][PANEL_NUMBERS] __attribute__((aligned(64)));
    Leaving leaving = {0};
    WRITTEN;
    size parts = parts_of(K), whole = steps_of_part(K), turn = 0;
    size first = region->first, end = region->end, M = region->bottom;
    size at_a_time = rows_at_a_time(M - region->top, K);
    for (size top = region->top; top < M; top += at_a_time)
        for (size part = 0; part < parts; part++)
            for (size n = first; n < end; n += PANEL) {
                size begin = part * whole, stop = least(begin + whole, K / PAIRS_OF), rows = least(at_a_time, M - top);
                size blocks = (rows + PANEL - 1) / PANEL, pieces = (stop - begin + STEPS - 1) / STEPS;
                size steps = (stop - begin + pieces - 1) / pieces;
                const uint32_t *panel = (const uint32_t *)w->tiles + n * K / 2;
                const char *next = (const char *)(panel + PANEL * K / 2 + begin * 2 * TILE_NUMBERS);
                Fetching fetched = {next, n + PANEL < end ? next + (stop - begin) * PANEL * LINE : next,
                                    (PANEL + blocks - 1) / blocks};
                for (size k = begin; k < stop; k += steps)
                    for (size i = top; i < top + rows; i += PANEL) {
                        size to = least(k + steps, stop);
                        int both = i + LANES < M, last = to == K / PAIRS_OF;
                        float *kept = scratch + (parts > 1 ? (n - first) * at_a_time : 0) + (i - top) * PANEL;
                        if (k)
                            load_sums(kept);
                        else
                            zero_sums();
                        const uint32_t *tiles = panel + k * 2 * TILE_NUMBERS;
                        add_steps(to - k, x + i * K + k * PAIRS_OF, K, both, tiles, tiles + TILE_NUMBERS,
                                  2 * TILE_NUMBERS, w, N, &leaving, &fetched);
                        if (last) add_beside(beside, count, n, i, both, w, N, &leaving);
                        while (leaving.row < leaving.rows) leave_row(w, N, &leaving);
                        store_sums(last ? sums[turn] : kept);
                        if (!last) continue;
                        leaving = (Leaving){sums[turn], i, n, 0, both ? PANEL : LANES, n + PANEL < end};
                        turn = !turn;
                    }
            }
    while (leaving.row < leaving.rows) leave_row(w, N, &leaving);
}

#endif
