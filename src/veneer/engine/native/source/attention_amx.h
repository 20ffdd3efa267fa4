/* Attention of one text and key-value head by the matrix unit: the tasks of attention.h for bf16 with AMX.

   Queries, keys and values are copied into rows that fill tiles, zeros behind them. 32 queries are computed at a time,
   against the keys that any of them sees. Probabilities and the gradients of scores are rounded to bf16 before they are
   multiplied, as flash attention has them (Dao et al. 2022, section 3.1); everything else is in fp32. */

#ifdef HAS_AMX

enum {
    QUERIES = PAIRS_OF,
    TILE_BYTES = 4 * TILE_NUMBERS,
    FEWEST = 8,              /* queries from which on the tiles are worth their padding; measured */
    FEWEST_OF_GRADIENT = 16,
};

/* Whether heads of D numbers are computed here, those of texts with enough queries. */
static int amx_attends(size D) { return D % PAIRS_OF == 0 && amx_allowed(); }

INLINE size up_to_pairs(size n) { return (n + PAIRS_OF - 1) / PAIRS_OF * PAIRS_OF; }

/* What one thread wants in its scratch for texts of up to so many queries and keys, in floats. */
static size amx_attention_floats(size queries, size keys, size D) {
    size m = up_to_pairs(queries), n = up_to_pairs(keys);
    size numbers = 5 * (m + n) * D + 2 * QUERIES * n + 2 * m * n; /* bf16 */
    return numbers / 2 + 2 * QUERIES * n + (2 * n + QUERIES) * D;
}

/* Takes so many bytes from a scratch. */
INLINE void *taken(char **scratch, size bytes) {
    void *from = *scratch;
    *scratch += bytes;
    return from;
}

/* n rows of D numbers, `ld` apart or those that `row` names, -> (np, D); zeros behind them. */
static void copy_rows(const bf16 *from, size ld, const int32_t *row, size n, size D, bf16 *to, size np) {
    for (size i = 0; i < n; i++)
        for (size d = 0; d < D; d += PAIRS_OF)
            _mm512_store_si512(to + i * D + d, _mm512_loadu_si512(from + (row ? row[i] : i) * ld + d));
    memset(to + n * D, 0, (np - n) * D * sizeof(bf16));
}

/* (n, D) -> for each 16 rows, and of those for each 32 columns, a tile of pairs of its transposed. */
static void tiles_of_turned(const bf16 *rows, size n, size D, uint32_t *tiles) {
    for (size i = 0; i < n; i += LANES)
        for (size d = 0; d < D; d += PAIRS_OF, tiles += TILE_NUMBERS)
            turn_block((const float *)(rows + i * D + d), D / 2, (float *)tiles, LANES);
}

/* 32 rows of 16 numbers -> a tile of pairs. */
INLINE void tile_of_pairs(const bf16 *rows, size ld, uint32_t *tile) {
    for (size p = 0; p < LANES; p++, rows += 2 * ld)
        _mm512_store_si512(tile + p * LANES, pair(_mm256_loadu_si256((const __m256i *)rows),
                                                  _mm256_loadu_si256((const __m256i *)(rows + ld))));
}

/* (n, D) -> for each 32 rows, and of those for each 16 columns, a tile of pairs. */
static void tiles_of_pairs(const bf16 *rows, size n, size D, uint32_t *tiles) {
    for (size i = 0; i < n; i += PAIRS_OF)
        for (size d = 0; d < D; d += LANES, tiles += TILE_NUMBERS) tile_of_pairs(rows + i * D + d, D, tiles);
}

/* 32 rows from column `first` to `end` - 1 -> for each 16 columns the tile (16, 32) of its transposed, `apart`. */
static void turned_tiles(const bf16 *rows, size ld, size first, size end, uint32_t *tiles, size apart) {
    uint32_t pairs[TILE_NUMBERS] __attribute__((aligned(64)));
    for (size c = first; c < end; c += LANES) {
        tile_of_pairs(rows + c, ld, pairs);
        turn_block((const float *)pairs, LANES, (float *)(tiles + c / LANES * apart), LANES);
    }
}

/* c, up to (32, 32) of ldc floats a row, = [c +] the sum over `steps` of tiles a, and those of 16 rows more (or NULL),
   whose rows are lda bytes apart, times tiles of pairs b, and those of 16 columns more (or NULL). */
INLINE void tile_products(size steps, const void *a, const void *more_rows, size lda, size step_a, const uint32_t *b,
                          const uint32_t *more_columns, size step_b, float *c, size ldc, int add) {
    const char *first = a, *second = more_rows;
    float *right = c + LANES, *below = c + LANES * ldc;
    if (add) {
        _tile_loadd(0, c, ldc * 4);
        if (more_columns) _tile_loadd(1, right, ldc * 4);
        if (second) _tile_loadd(2, below, ldc * 4);
        if (second && more_columns) _tile_loadd(3, below + LANES, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size k = 0; k < steps; k++) {
        _tile_loadd(4, first + k * step_a, lda);
        _tile_loadd(6, b + k * step_b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (second) {
            _tile_loadd(5, second + k * step_a, lda);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (more_columns) {
            _tile_loadd(7, more_columns + k * step_b, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (second) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, ldc * 4);
    if (more_columns) _tile_stored(1, right, ldc * 4);
    if (second) _tile_stored(2, below, ldc * 4);
    if (second && more_columns) _tile_stored(3, below + LANES, ldc * 4);
}

/* 32 queries of a text, from number i on: how many of them there are, and the multiples of 32 from which and up to which
   keys any of them sees. `past` keys stand before the text's first query. */
typedef struct {
    size i, rows, past, first, end;
} Block;
static Block block_at(const Texts_bf16 *t, const Task_bf16 *at, size i) {
    size past = at->n - at->m, keys = up_to_pairs(at->n), rows = least(QUERIES, at->m - i);
    Block b = {i, rows, past, 0, keys};
    if (t->causal) {
        b.first = past + i > t->before ? (past + i - t->before) / PAIRS_OF * PAIRS_OF : 0;
        b.end = least(keys, up_to_pairs(past + i + rows));
    }
    return b;
}

/* s (32, ld) = rows of a (D numbers each) of a block's queries times the turned keys that it sees, of n. */
INLINE void amx_scores(const Block *b, const bf16 *a, const uint32_t *turned, size D, size n, float *s, size ld) {
    size steps = D / PAIRS_OF;
    const bf16 *rows = a + b->i * D;
    for (size j = b->first; j < least(b->end, n); j += 2 * LANES) {
        const uint32_t *tiles = turned + j / LANES * steps * TILE_NUMBERS;
        tile_products(steps, rows, b->rows > LANES ? rows + LANES * D : NULL, D * 2, 64, tiles,
                      j + LANES < n ? tiles + steps * TILE_NUMBERS : NULL, TILE_NUMBERS, s + j, ld, 0);
    }
}

/* o (32, D) = a block's weights (32, ld) times the values in tiles of pairs. */
INLINE void amx_weighted(const Block *b, const bf16 *weights, size ld, const uint32_t *values, size D, float *o) {
    const bf16 *rows = weights + b->first;
    size across = D / LANES * TILE_NUMBERS, steps = (b->end - b->first) / PAIRS_OF;
    for (size d = 0; d < D; d += 2 * LANES) {
        const uint32_t *tiles = values + b->first / PAIRS_OF * across + d / LANES * TILE_NUMBERS;
        tile_products(steps, rows, b->rows > LANES ? rows + LANES * ld : NULL, ld * 2, 64, tiles, tiles + TILE_NUMBERS,
                      across, o + d, D, 0);
    }
}

/* (rows, D) floats times `factor`, and times each row's own (or NULL), -> rows of bf16, ldto apart. */
static void leave_rows(const float *from, size ld, size rows, size D, float factor, const float *own, bf16 *to,
                       size ldto) {
    for (size i = 0; i < rows; i++) {
        __m512 times = _mm512_set1_ps(own ? own[i] * factor : factor);
        for (size d = 0; d < D; d += PAIRS_OF) {
            __m512 low = _mm512_mul_ps(times, _mm512_loadu_ps(from + i * ld + d));
            __m512 high = _mm512_mul_ps(times, _mm512_loadu_ps(from + i * ld + d + LANES));
            _mm512_storeu_si512(to + i * ldto + d, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

/* 2^t as `e_to_bf16` has it, of 16 numbers. */
INLINE __m512 two_to(__m512 t) {
    __m512 n = _mm512_roundscale_ps(t, 8), r = _mm512_sub_ps(t, n), p = _mm512_set1_ps(9.5701e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591786e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24024745f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69312181f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.99999926f));
    return _mm512_scalef_ps(p, n);
}

/* The keys that a block's query r sees: from `first` to `end` - 1, which stand in the wides from `low` to `high`. */
typedef struct {
    size first, end, low, high;
} Seen;
INLINE Seen seen_by(const Texts_bf16 *t, const Block *b, size r, size n) {
    size at = b->past + b->i + r;
    Seen s = {t->causal && at > t->before ? at - t->before : 0, t->causal ? at + 1 : n, 0, 0};
    s.low = s.first / LANES * LANES;
    s.high = up_to_lanes(s.end);
    return s;
}
INLINE __mmask16 seen_from(const Seen *s, size j) {
    return first_of(s->end - j) & (s->first > j ? (__mmask16)(0xffffu << (s->first - j)) : (__mmask16)0xffff);
}

INLINE __m512 exponent_of(const float *row, const Seen *seen, float scaling) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (size j = seen->low; j < seen->high; j += LANES)
        top = _mm512_mask_max_ps(top, seen_from(seen, j), top, _mm512_loadu_ps(row + j));
    return _mm512_set1_ps(_mm512_reduce_max_ps(top) * scaling);
}

INLINE void store_rounded(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

/* Zeros for the keys that a query's block sees and the query does not. */
INLINE void clear_unseen(bf16 *row, const Block *b, const Seen *seen) {
    memset(row + b->first, 0, (seen->low - b->first) * sizeof(bf16));
    memset(row + seen->high, 0, (b->end - seen->high) * sizeof(bf16));
}

/* A block's scores s (32, ld) -> their exponentials in bf16, and for each query 1 over their sum. */
static void amx_softmax(const Texts_bf16 *t, const Block *b, size n, const float *s, size ld, bf16 *p, float *inverse) {
    float scaling = t->scaling * 1.44269504f;
    __m512 times = _mm512_set1_ps(scaling);
    for (size r = 0; r < b->rows; r++, s += ld, p += ld) {
        Seen seen = seen_by(t, b, r, n);
        __m512 top = exponent_of(s, &seen, scaling), sum = _mm512_setzero_ps();
        for (size j = seen.low; j < seen.high; j += LANES) {
            __m512 e = two_to(_mm512_fmsub_ps(_mm512_loadu_ps(s + j), times, top));
            e = _mm512_maskz_mov_ps(seen_from(&seen, j), e);
            sum = _mm512_add_ps(sum, e);
            store_rounded(p + j, e);
        }
        clear_unseen(p, b, &seen);
        inverse[r] = 1.0f / _mm512_reduce_add_ps(sum);
    }
}

/* A block's scores s and gradients dp of its probabilities, both (32, ld) -> in bf16 the probabilities p, and
   p (dp - the sum of p dp), the gradients of the scores before scaling. s is written over. */
static void amx_softmax_gradient(const Texts_bf16 *t, const Block *b, size n, float *s, const float *dp, size ld,
                                 bf16 *p, bf16 *ds) {
    float scaling = t->scaling * 1.44269504f;
    __m512 times = _mm512_set1_ps(scaling);
    for (size r = 0; r < b->rows; r++, s += ld, dp += ld, p += ld, ds += ld) {
        Seen seen = seen_by(t, b, r, n);
        __m512 top = exponent_of(s, &seen, scaling), sum = _mm512_setzero_ps(), along = sum;
        for (size j = seen.low; j < seen.high; j += LANES) {
            __mmask16 there = seen_from(&seen, j);
            __m512 e = two_to(_mm512_fmsub_ps(_mm512_loadu_ps(s + j), times, top));
            e = _mm512_maskz_mov_ps(there, e);
            sum = _mm512_add_ps(sum, e);
            along = _mm512_mask3_fmadd_ps(e, _mm512_loadu_ps(dp + j), along, there);
            _mm512_storeu_ps(s + j, e);
        }
        float inverse = 1.0f / _mm512_reduce_add_ps(sum);
        __m512 whole = _mm512_set1_ps(inverse), mean = _mm512_set1_ps(_mm512_reduce_add_ps(along) * inverse);
        for (size j = seen.low; j < seen.high; j += LANES) {
            __m512 own = _mm512_mul_ps(_mm512_loadu_ps(s + j), whole);
            __m512 off = _mm512_maskz_sub_ps(seen_from(&seen, j), _mm512_loadu_ps(dp + j), mean);
            store_rounded(p + j, own);
            store_rounded(ds + j, _mm512_mul_ps(own, off));
        }
        clear_unseen(p, b, &seen);
        clear_unseen(ds, b, &seen);
    }
    for (size r = b->rows; r < QUERIES; r++, p += ld, ds += ld) { /* these are summed over */
        memset(p + b->first, 0, (b->end - b->first) * sizeof(bf16));
        memset(ds + b->first, 0, (b->end - b->first) * sizeof(bf16));
    }
}

/* One task of `attend`; `out` as there. */
static void amx_attend(const Texts_bf16 *t, const Task_bf16 *at, bf16 *out, size ldo, char *scratch) {
    size D = t->D, m = at->m, n = at->n, mp = up_to_pairs(m), np = up_to_pairs(n), times = t->heads / t->kv_heads;
    const int32_t *row = t->row ? t->row + at->k : NULL;
    size begin = row ? 0 : at->k * t->ldk;
    uint32_t *keys = taken(&scratch, np * D * 2), *values = taken(&scratch, np * D * 2);
    bf16 *rows = taken(&scratch, most(mp, np) * D * 2), *p = taken(&scratch, QUERIES * np * 2);
    float *s = taken(&scratch, QUERIES * np * 4), *o = taken(&scratch, QUERIES * D * 4), inverse[QUERIES];
    copy_rows(t->k + begin + at->head * D, t->ldk, row, n, D, rows, np);
    tiles_of_turned(rows, np, D, keys);
    copy_rows(t->v + begin + at->head * D, t->ldk, row, n, D, rows, np);
    tiles_of_pairs(rows, np, D, values);
    for (size h = at->head * times; h < (at->head + 1) * times; h++) {
        copy_rows(t->q + at->q * t->ldq + h * D, t->ldq, NULL, m, D, rows, mp);
        for (size i = 0; i < m; i += QUERIES) {
            Block b = block_at(t, at, i);
            WRITTEN;
            amx_scores(&b, rows, keys, D, n, s, np);
            amx_softmax(t, &b, n, s, np, p, inverse);
            WRITTEN;
            amx_weighted(&b, p, np, values, D, o);
            leave_rows(o, D, b.rows, D, 1.0f, inverse, out + (at->q + i) * ldo + h * D, ldo);
        }
    }
}

/* sums (np, D) = [sums +] the turned weights, (16, 32) of which stand for each 16 keys in `blocks` tiles for 32 queries
   each, times the rows of the queries in tiles of pairs. */
static void amx_sum_over_queries(const Texts_bf16 *t, const Task_bf16 *at, const uint32_t *weights, size blocks,
                                 const uint32_t *queries, float *sums, int add) {
    size D = t->D, across = D / LANES * TILE_NUMBERS;
    for (size j = 0; j < at->n; j += PAIRS_OF) {
        size first = 0, end = 0; /* blocks of queries that see these keys */
        for (size i = 0; i < blocks; i++) {
            Block b = block_at(t, at, i * QUERIES);
            if (j >= b.end) first = i + 1;
            if (j >= b.first) end = i + 1;
        }
        const uint32_t *rows = weights + (j / LANES * blocks + first) * TILE_NUMBERS;
        for (size d = 0; d < D; d += 2 * LANES) {
            const uint32_t *tiles = queries + first * across + d / LANES * TILE_NUMBERS;
            tile_products(most(end - first, 0), rows, j + LANES < at->n ? rows + blocks * TILE_NUMBERS : NULL, 64,
                          TILE_BYTES, tiles, tiles + TILE_NUMBERS, across, sums + j * D + d, D, add);
        }
    }
}

/* One task of `attend_gradient`; grad and the gradients as there. */
static void amx_attend_gradient(const Texts_bf16 *t, const Task_bf16 *at, const bf16 *grad, size ldo, bf16 *gq,
                                bf16 *gk, bf16 *gv, char *scratch) {
    size D = t->D, m = at->m, n = at->n, mp = up_to_pairs(m), np = up_to_pairs(n), times = t->heads / t->kv_heads;
    size own = at->k * t->ldk + at->head * D, blocks = mp / QUERIES;
    uint32_t *keys = taken(&scratch, np * D * 2), *values = taken(&scratch, np * D * 2);
    uint32_t *paired_keys = taken(&scratch, np * D * 2);
    uint32_t *paired_q = taken(&scratch, mp * D * 2), *paired_g = taken(&scratch, mp * D * 2);
    uint32_t *weights = taken(&scratch, mp * np * 2), *of_scores = taken(&scratch, mp * np * 2);
    bf16 *q = taken(&scratch, most(mp, np) * D * 2), *g = taken(&scratch, mp * D * 2);
    bf16 *p = taken(&scratch, QUERIES * np * 2), *ds = taken(&scratch, QUERIES * np * 2);
    float *s = taken(&scratch, QUERIES * np * 4), *dp = taken(&scratch, QUERIES * np * 4);
    float *sum_k = taken(&scratch, np * D * 4), *sum_v = taken(&scratch, np * D * 4), *o = taken(&scratch, QUERIES * D * 4);
    copy_rows(t->v + own, t->ldk, NULL, n, D, q, np);
    tiles_of_turned(q, np, D, values);
    copy_rows(t->k + own, t->ldk, NULL, n, D, q, np);
    tiles_of_turned(q, np, D, keys);
    tiles_of_pairs(q, np, D, paired_keys);
    for (size h = at->head * times; h < (at->head + 1) * times; h++) {
        copy_rows(t->q + at->q * t->ldq + h * D, t->ldq, NULL, m, D, q, mp);
        copy_rows(grad + at->q * ldo + h * D, ldo, NULL, m, D, g, mp);
        tiles_of_pairs(q, mp, D, paired_q);
        tiles_of_pairs(g, mp, D, paired_g);
        for (size i = 0; i < m; i += QUERIES) {
            Block b = block_at(t, at, i);
            size place = i / QUERIES * TILE_NUMBERS;
            WRITTEN;
            amx_scores(&b, q, keys, D, n, s, np);
            amx_scores(&b, g, values, D, n, dp, np);
            amx_softmax_gradient(t, &b, n, s, dp, np, p, ds);
            turned_tiles(p, np, b.first, least(b.end, n), weights + place, blocks * TILE_NUMBERS);
            turned_tiles(ds, np, b.first, least(b.end, n), of_scores + place, blocks * TILE_NUMBERS);
            WRITTEN;
            amx_weighted(&b, ds, np, paired_keys, D, o);
            leave_rows(o, D, b.rows, D, t->scaling, NULL, gq + (at->q + i) * t->ldq + h * D, t->ldq);
        }
        WRITTEN;
        amx_sum_over_queries(t, at, of_scores, blocks, paired_q, sum_k, h > at->head * times);
        amx_sum_over_queries(t, at, weights, blocks, paired_g, sum_v, h > at->head * times);
    }
    leave_rows(sum_k, D, n, D, t->scaling, NULL, gk + own, t->ldk);
    leave_rows(sum_v, D, n, D, 1.0f, NULL, gv + own, t->ldk);
}

#endif
