/* Products with a frozen fp32 weight that was laid into panels once, with the adapters in them; for processors with AVX2
   and nothing above it, where PyTorch's products lay a weight out anew each time.

   A weight (N, K) stands as N / 16 panels, each of K times 16 outputs. A thread has panels of its own. PIECE inputs of a
   panel stay in the L1 cache for all rows; the rows' own, read where they are, in the L2 cache, as many at a time as fit.
   Sums run over the inputs in order, whatever M and the number of threads are. */

#if defined(__AVX2__) && !defined(__AVX512F__)

enum {
    PIECE = 256,        /* inputs: 16 KB of a panel */
    ROWS_OF_L2 = 320,   /* of PIECE inputs: 320 KB */
    PREFETCH_TO_L2 = 2, /* as `__builtin_prefetch` names it */
};

/* w (N, K), or (K, N) if `transposed` -> its panels; N and K are multiples of 16. */
void frozen_tiles_f32(const float *w, int transposed, size N, size K, float *tiles, int threads) {
    PARALLEL(threads) {
        size first, end;
        share(N, LANES, THREAD, TEAM, &first, &end);
        for (size n = first; n < end; n += LANES) {
            float *to = tiles + n * K;
            if (transposed)
                for (size k = 0; k < K; k++) memcpy(to + k * LANES, w + k * N + n, LANES * sizeof(float));
            else
                for (size k = 0; k < K; k += LANES) turn_block(w + n * K + k, K, to + k * LANES, LANES);
        }
    }
}

size frozen_floats_f32(size M, size K, size N, int threads) { return 0; } /* `lora_floats` is enough */
int frozen_possible_f32(void) { return 1; }
int frozen_takes_f32(size M, size K, const Part *parts, int count) {
    for (int p = 0; p < count; p++)
        if (parts[p].start % LANES || parts[p].outputs % LANES) return 0;
    return 1;
}

/* c (m, 16) = [from +] [bias +] a (m, k) times a panel (k, 16). */
static void panel_rows(size m, size k, const float *a, size lda, const float *panel, const float *from, size ldfrom,
                       const float *bias, float *c, size ldc) {
    gemm_columns(1, m, k, a, lda, 1, panel, LANES, from, ldfrom, bias, c, ldc);
}

/* A frozen weight in panels, bias (N,) and residual (M, N) or NULL, and y (M, N), where the product goes. */
typedef struct {
    const float *tiles, *bias, *residual;
    float *y;
} Paneled;

/* One thread's columns of y = x (M, K) W^T + bias + residual, and what `parts` add: forward their (x A^T) B^T, or if `back`
   (g B) A, from `narrow` (M, ld). */
static void panel_product(const float *x, const Paneled *w, size M, size K, size N, const Part *parts, int count,
                          int back, const float *narrow, size ld, float *panel) {
    size first, end, turns = (M + ROWS_OF_L2 - 1) / ROWS_OF_L2, rows_a_turn = turns ? (M + turns - 1) / turns : 0;
    rows_a_turn = (rows_a_turn + ROWS - 1) / ROWS * ROWS;
    share(N, LANES, THREAD, TEAM, &first, &end);
    for (size top = 0; top < M; top += rows_a_turn) {
        size bottom = least(M, top + rows_a_turn), blocks = (bottom - top + ROWS - 1) / ROWS;
        for (size k = 0; k < K; k += PIECE) {
            size inputs = least(PIECE, K - k), lines = (inputs + blocks - 1) / blocks; /* of the next panel, for a block */
            for (size n = first; n < end; n += LANES) {
                const float *piece = w->tiles + n * K + k * LANES, *next = piece + K * LANES;
                if (n + LANES >= end) next = k + PIECE < K ? w->tiles + first * K + (k + PIECE) * LANES : NULL;
                for (size i = top; i < bottom; i += ROWS) {
                    size rows = least(ROWS, bottom - i);
                    float *to = w->y + i * N + n;
                    for (size r = 0; r < rows; r++) __builtin_prefetch(to + r * N, 1);
                    for (size l = 0; l < lines && next; l++, next += LANES) __builtin_prefetch(next, 0, PREFETCH_TO_L2);
                    const float *from = k ? to : w->residual ? w->residual + i * N + n : NULL;
                    panel_rows(rows, inputs, x + i * K + k, K, piece, from, N, k || !w->bias ? NULL : w->bias + n, to, N);
                }
            }
        }
        for (size n = first; n < end && count; n += LANES)
            for (int p = 0; p < count; p++) {
                const Part *part = parts + p;
                if (!back && (n < part->start || n >= part->start + part->outputs)) continue;
                if (back)
                    for (size j = 0; j < part->r; j++) memcpy(panel + j * LANES, part->A + j * N + n, LANES * sizeof(float));
                else
                    turn_padded(part->B + (n - part->start) * part->r, part->r, LANES, part->r, panel, LANES, part->scaling);
                float *to = w->y + top * N + n;
                panel_rows(bottom - top, part->r, narrow + top * ld + part->at, ld, panel, to, N, NULL, to, N);
            }
    }
}

/* y (M, N) = x (M, K) times a frozen weight in panels, + bias + residual + what the parts add; bias and residual may be
   NULL. h (M, ld) as in `lora_forward`. */
void frozen_forward_f32(const float *x, const float *tiles, const float *bias, const float *residual, float *y, size M,
                        size K, size N, const Part *parts, int count, float *h, size ld, float *shared, float *scratch,
                        size floats, int threads) {
    Paneled w = {tiles, bias, residual, y};
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats;
        if (count) narrow_forward_f32(x, M, K, parts, count, h, ld, shared, mine);
        panel_product(x, &w, M, K, N, parts, count, 0, h, ld, mine);
    }
}

/* gx (M, K) = g (M, N) times the turned weight's panels, + beside (or NULL) + what `lora_backward` adds. */
void frozen_backward_f32(const float *g, const float *tiles, const float *beside, const float *x, const float *h, float *gx,
                         size M, size K, size N, const Part *parts, int count, float *u, size ld, float *shared,
                         float *scratch, size floats, int threads) {
    Paneled w = {tiles, NULL, beside, gx};
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats;
        if (count) narrow_backward_f32(g, M, N, parts, count, u, ld, shared, mine);
        if (x) factor_gradients_f32(g, x, h, M, K, N, parts, count, u, ld, mine);
        panel_product(g, &w, M, N, K, parts, count, 1, u, ld, mine);
    }
}

#endif
