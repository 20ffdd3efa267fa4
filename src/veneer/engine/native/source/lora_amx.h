/* lora.h's two functions for bf16 with AMX: the same phases in tiles. The factors and the narrow (M, ld) matrices are
   rounded to bf16, as PyTorch's products have them. Where the frozen weight is in tiles too, the wide products are further
   steps of the product with it. */

#ifdef HAS_AMX

enum { AMX_COLUMNS = 64, MOST_PARTS = 8 };

/* (rows, AMX_COLUMNS) bf16 -> for each 16 columns the tiles of pairs of every 32 rows, `stride` numbers apart. */
static void pairs_of_rows(const bf16 *from, size ld, size rows, uint32_t *tiles, size stride) {
    const __m256i none = _mm256_setzero_si256();
    for (size p = 0; 2 * p < (rows + PAIRS_OF - 1) / PAIRS_OF * PAIRS_OF; p++)
        for (size c = 0; c < AMX_COLUMNS / LANES; c++) {
            const bf16 *at = from + 2 * p * ld + c * LANES;
            __m256i even = 2 * p < rows ? _mm256_loadu_si256((const __m256i *)at) : none;
            __m256i odd = 2 * p + 1 < rows ? _mm256_loadu_si256((const __m256i *)(at + ld)) : none;
            _mm512_storeu_si512(tiles + c * stride + p * LANES, pair(even, odd));
        }
}

/* h (M, ld) from row i to `end` - 1, both multiples of 16: x (M, K) times K / 32 tiles of pairs. */
static void amx_narrow(size i, size end, size K, const bf16 *x, size ldx, const uint32_t *tiles, float *h, size ld) {
    WRITTEN;
    for (; i < end; i += 2 * LANES) {
        int both = i + LANES < end;
        _tile_zero(0);
        _tile_zero(1);
        for (size k = 0; k < K / PAIRS_OF; k++) {
            _tile_loadd(4, tiles + k * TILE_NUMBERS, 64);
            _tile_loadd(2, x + i * ldx + k * PAIRS_OF, ldx * 2);
            _tile_dpbf16ps(0, 2, 4);
            if (both) {
                _tile_loadd(3, x + (i + LANES) * ldx + k * PAIRS_OF, ldx * 2);
                _tile_dpbf16ps(1, 3, 4);
            }
        }
        _tile_stored(0, h + i * ld, ld * 4);
        if (both) _tile_stored(1, h + (i + LANES) * ld, ld * 4);
    }
}

/* (16, columns) floats -> bf16, columns a multiple of 16. */
static void round_rows(const float *from, size ld, size columns, bf16 *to, size ldto) {
    for (size i = 0; i < LANES; i++)
        for (size c = 0; c < columns; c += LANES)
            _mm256_storeu_si256((__m256i *)(to + i * ldto + c),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i * ld + c)));
}

/* y (M, columns) += a (M, 32 steps) times tiles: those of 16 columns are `steps` behind each other. */
static void amx_add(size M, size columns, size steps, const bf16 *a, size lda, const uint32_t *tiles, bf16 *y,
                    size ldy) {
    float sums[2 * TILE_NUMBERS] __attribute__((aligned(64)));
    WRITTEN;
    for (size i = 0; i < M; i += LANES)
        for (size c = 0; c < columns; c += 2 * LANES) {
            _tile_zero(0);
            _tile_zero(1);
            for (size k = 0; k < steps; k++) {
                const uint32_t *left = tiles + (c / LANES * steps + k) * TILE_NUMBERS;
                _tile_loadd(2, a + i * lda + k * PAIRS_OF, lda * 2);
                _tile_loadd(3, left, 64);
                _tile_loadd(4, left + steps * TILE_NUMBERS, 64);
                _tile_dpbf16ps(0, 2, 3);
                _tile_dpbf16ps(1, 2, 4);
            }
            _tile_stored(0, sums, 64);
            _tile_stored(1, sums + TILE_NUMBERS, 64);
            for (size r = 0; r < LANES; r++) {
                bf16 *at = y + (i + r) * ldy + c;
                __m512i low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)at)), 16);
                __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)(at + LANES))), 16);
                __m512 left = _mm512_add_ps((__m512)low, _mm512_load_ps(sums + r * LANES));
                __m512 right = _mm512_add_ps((__m512)high, _mm512_load_ps(sums + TILE_NUMBERS + r * LANES));
                _mm512_storeu_si512(at, (__m512i)_mm512_cvtne2ps_pbh(right, left));
            }
        }
}

/* 16 rows of c (16, AMX_COLUMNS) = the tiles of a^T (16, 32 steps) times the tiles of pairs of (32 steps, AMX_COLUMNS). */
static void amx_turned(size steps, const bf16 *turned, const uint32_t *tiles, float *c) {
    WRITTEN;
    for (int j = 0; j < AMX_COLUMNS / LANES; j += 2) {
        _tile_zero(0);
        _tile_zero(1);
        for (size k = 0; k < steps; k++) {
            _tile_loadd(2, turned + k * TILE_NUMBERS * 2, 64);
            _tile_loadd(3, tiles + (j * steps + k) * TILE_NUMBERS, 64);
            _tile_loadd(4, tiles + ((j + 1) * steps + k) * TILE_NUMBERS, 64);
            _tile_dpbf16ps(0, 2, 3);
            _tile_dpbf16ps(1, 2, 4);
        }
        _tile_stored(0, c + j * LANES, AMX_COLUMNS * 4);
        _tile_stored(1, c + (j + 1) * LANES, AMX_COLUMNS * 4);
    }
}

/* Columns `at` to `at` + 15 of a (M, ld) -> tiles (16, 32) of its transposed, for the rows from i to `end` - 1. */
static void turn_into_tiles(const float *a, size ld, size i, size end, size at, bf16 *tiles) {
    float block[TILE_NUMBERS] __attribute__((aligned(64)));
    for (; i < end; i += LANES) {
        bf16 *to = tiles + i / PAIRS_OF * TILE_NUMBERS * 2 + i % PAIRS_OF;
        turn_block(a + i * ld + at, ld, block, LANES);
        round_rows(block, LANES, LANES, to, PAIRS_OF);
    }
}

static size steps_of(size n) { return (n + PAIRS_OF - 1) / PAIRS_OF; }

/* Whether these shapes are the tiles'. */
static int amx_fits(size M, size K, const Part *parts, int count) {
    if (M % LANES || K % AMX_COLUMNS || count > MOST_PARTS) return 0;
    for (int p = 0; p < count; p++)
        if (parts[p].outputs % AMX_COLUMNS) return 0;
    return amx_allowed();
}

/* (M, `width`) of the parts' narrow matrices as bf16, each part with a multiple of 32 columns; zeros behind its own. */
static void round_parts(const float *h, size ld, size i, size end, const Part *parts, int count, bf16 *to, size width) {
    for (; i < end; i += LANES) {
        size column = 0;
        for (int p = 0; p < count; p++) {
            size own = up_to_lanes(parts[p].r), padded = steps_of(own) * PAIRS_OF;
            round_rows(h + i * ld + parts[p].at, ld, own, to + i * width + column, width);
            for (size r = 0; r < LANES && padded > own; r++)
                memset(to + (i + r) * width + column + own, 0, (padded - own) * sizeof(bf16));
            column += padded;
        }
    }
}

static size width_of(const Part *parts, int count) {
    size width = 0;
    for (int p = 0; p < count; p++) width += steps_of(parts[p].r) * PAIRS_OF;
    return width;
}

/* The tiles of scaled B of the outputs from `first` to `end` - 1 of a part, those of 16 outputs behind each other. */
static void tiles_of_B(const Part *part, size first, size end, uint32_t *to) {
    size steps = steps_of(part->r);
    for (size n = first; n < end; n += LANES)
        for (size k = 0; k < steps; k++, to += TILE_NUMBERS)
            pairs_of_turned(part->B + n * part->r + k * PAIRS_OF, part->r, LANES, least(PAIRS_OF, part->r - k * PAIRS_OF),
                            part->scaling, to);
}

/* `lora_forward`; with a frozen weight its whole product in place of y. */
static void amx_lora_forward(const bf16 *x, const Frozen *frozen, bf16 *y, size M, size K, size N, const Part *parts,
                             int count, float *h, size ld, float *shared, float *scratch, size floats, int threads) {
    size width = width_of(parts, count);
    uint32_t *of_A = (uint32_t *)shared, *of_B = of_A + K * ld / 2;
    bf16 *rounded = (bf16 *)(of_B + N * width / 2);
    PARALLEL(threads) {
        TileShapes before;
        size first, end;
        amx_enter(&before);
        share(K, PAIRS_OF, THREAD, TEAM, &first, &end);
        for (int p = 0; p < count; p++)
            for (size j = 0; j < parts[p].r; j += LANES)
                for (size k = first; k < end; k += PAIRS_OF)
                    pairs_of_turned(parts[p].A + j * K + k, K, least(LANES, parts[p].r - j), PAIRS_OF, 1.0f,
                                    of_A + (parts[p].at + j) * K / 2 + k / PAIRS_OF * TILE_NUMBERS);
        BARRIER
        share(M, LANES, THREAD, TEAM, &first, &end);
        for (size at = 0; at < ld; at += LANES) amx_narrow(first, end, K, x, K, of_A + at * K / 2, h + at, ld);
        round_parts(h, ld, first, end, parts, count, rounded, width);
        BARRIER
        Beside beside[MOST_PARTS];
        share(N, PANEL, THREAD, TEAM, &first, &end);
        uint32_t *tiles = of_B;
        size column = 0;
        for (int p = 0; p < count; p++) {
            const Part *part = parts + p;
            size steps = steps_of(part->r), from, to; /* of its outputs */
            if (frozen)
                from = most(first - part->start, 0), to = least(end - part->start, part->outputs);
            else
                share(part->outputs, AMX_COLUMNS, THREAD, TEAM, &from, &to);
            uint32_t *mine = tiles + from / LANES * steps * TILE_NUMBERS;
            tiles_of_B(part, from, to, mine);
            if (!frozen && from < to)
                amx_add(M, to - from, steps, rounded + column, width, mine, y + part->start + from, N);
            beside[p] = (Beside){part->start, part->outputs, rounded + column, width, tiles, steps};
            column += steps * PAIRS_OF;
            tiles += part->outputs / LANES * steps * TILE_NUMBERS;
        }
        if (frozen) {
            Region region = region_of(M, N, THREAD, TEAM);
            if (by_rows(M, N)) { /* then every thread wants all tiles of B */
                BARRIER
            }
            amx_product(x, frozen, K, N, beside, count, &region, scratch + THREAD * floats);
        }
        amx_leave(&before);
    }
}

/* `lora_backward`; with a frozen weight (the turned one: K outputs, N inputs) its whole product in place of gx, which
   is not NULL. */
static void amx_lora_backward(const bf16 *g, const bf16 *x, const float *h, const Frozen *frozen, bf16 *gx, size M,
                              size K, size N, const Part *parts, int count, float *u, size ld, float *shared,
                              float *scratch, size floats, int threads) {
    size width = width_of(parts, count), steps = steps_of(M);
    uint32_t *of_B = (uint32_t *)shared, *of_A = of_B + N * ld / 2;
    bf16 *rounded = (bf16 *)(of_A + K * width / 2), *turned_h = rounded + M * width;
    bf16 *turned_u = turned_h + steps * PAIRS_OF * ld;
    PARALLEL(threads) {
        uint32_t *tiles = (uint32_t *)(scratch + THREAD * floats);
        float sums[LANES * AMX_COLUMNS] __attribute__((aligned(64))), block[TILE_NUMBERS] __attribute__((aligned(64)));
        TileShapes before;
        size first, end, column = 0;
        amx_enter(&before);
        for (int p = 0; p < count; p++) {
            const Part *part = parts + p;
            size outputs = part->outputs, r = part->r, own = steps_of(r);
            share(outputs, PAIRS_OF, THREAD, TEAM, &first, &end);
            for (size j = 0; j < r; j += LANES)
                for (size n = first; n < end; n += PAIRS_OF)
                    pairs_of_floats(part->B + n * r + j, r, PAIRS_OF, least(LANES, r - j), part->scaling,
                                    of_B + part->at * N / 2 + j * outputs / 2 + n / PAIRS_OF * TILE_NUMBERS);
            share(K, AMX_COLUMNS, THREAD, TEAM, &first, &end);
            for (size k = first; k < end && gx; k += LANES)
                for (size s = 0; s < own; s++)
                    pairs_of_floats(part->A + s * PAIRS_OF * K + k, K, least(PAIRS_OF, r - s * PAIRS_OF), LANES, 1.0f,
                                    of_A + (k / LANES * (width / PAIRS_OF) + column + s) * TILE_NUMBERS);
            column += own;
        }
        BARRIER
        share(M, PAIRS_OF, THREAD, TEAM, &first, &end);
        for (int p = 0; p < count; p++)
            for (size j = 0; j < up_to_lanes(parts[p].r); j += LANES)
                amx_narrow(first, end, parts[p].outputs, g + parts[p].start, N,
                           of_B + parts[p].at * N / 2 + j * parts[p].outputs / 2, u + parts[p].at + j, ld);
        if (gx) round_parts(u, ld, first, end, parts, count, rounded, width);
        for (size at = 0; at < ld && x; at += LANES) {
            bf16 *to_h = turned_h + at * steps * PAIRS_OF, *to_u = turned_u + at * steps * PAIRS_OF;
            if (end == M && M % PAIRS_OF && end > first) { /* the last 16 columns of the last tile */
                memset(to_h + (steps - 1) * TILE_NUMBERS * 2, 0, TILE_NUMBERS * 2 * sizeof(bf16));
                memset(to_u + (steps - 1) * TILE_NUMBERS * 2, 0, TILE_NUMBERS * 2 * sizeof(bf16));
            }
            turn_into_tiles(h, ld, first, end, at, to_h);
            turn_into_tiles(u, ld, first, end, at, to_u);
        }
        BARRIER
        for (int p = 0; p < count && x; p++) {
            const Part *part = parts + p;
            share(part->outputs, AMX_COLUMNS, THREAD, TEAM, &first, &end);
            for (size n = first; n < end; n += AMX_COLUMNS) {
                pairs_of_rows(g + part->start + n, N, M, tiles, steps * TILE_NUMBERS);
                for (size j = 0; j < part->r; j += LANES) {
                    amx_turned(steps, turned_h + (part->at + j) * steps * PAIRS_OF, tiles, sums);
                    size there = least(LANES, part->r - j);
                    for (size c = 0; c < AMX_COLUMNS; c += LANES) {
                        turn_block(sums + c, AMX_COLUMNS, block, LANES);
                        for (size i = 0; i < LANES; i++)
                            for (size e = 0; e < there; e++)
                                part->of_B[(n + c + i) * part->r + j + e] = block[i * LANES + e] * part->scaling;
                    }
                }
            }
        }
        share(K, AMX_COLUMNS, THREAD, TEAM, &first, &end);
        for (size k = first; k < end && x; k += AMX_COLUMNS) {
            pairs_of_rows(x + k, K, M, tiles, steps * TILE_NUMBERS);
            for (int p = 0; p < count; p++)
                for (size j = 0; j < parts[p].r; j += LANES) {
                    amx_turned(steps, turned_u + (parts[p].at + j) * steps * PAIRS_OF, tiles, sums);
                    for (size i = 0; i < least(LANES, parts[p].r - j); i++)
                        memcpy(parts[p].of_A + (j + i) * K + k, sums + i * AMX_COLUMNS, AMX_COLUMNS * sizeof(float));
                }
        }
        if (frozen) {
            Beside beside = {0, K, rounded, width, of_A, width / PAIRS_OF};
            Region region = region_of(M, K, THREAD, TEAM);
            amx_product(g, frozen, N, K, &beside, 1, &region, scratch + THREAD * floats);
        } else if (gx)
            amx_add(M, end - first, width / PAIRS_OF, rounded, width,
                    of_A + first / LANES * (width / PAIRS_OF) * TILE_NUMBERS, gx + first, K);
        amx_leave(&before);
    }
}

#endif
