/* What LoRA adds to a product with a frozen weight, and its gradients; included once for each dtype.

   M rows, K inputs, N outputs; part p has A (r, K) and B (outputs, r) in fp32 and adds `scaling` (x A^T) B^T to the
   outputs from `start` on. Between the phases stands x A^T, or the gradient of it: (M, ld) floats, each part with a
   multiple of LANES columns of its own, zeros behind its r. A thread has rows of its own in the narrow products and
   columns of its own in the wide ones, so that each number is summed by one thread in one order. */

/* y (M, N columns of ldy) += a (M, r) b (r, N), b's rows ldb apart and padded to a multiple of LANES. */
static void FN(add_product)(size M, size N, size r, const float *a, size lda, const float *b, size ldb, REAL *y,
                            size ldy, float *block) {
    size np = up_to_lanes(N);
    for (size i = 0; i < M; i += TILE) {
        size rows = least(TILE, M - i);
        FN(widen)(y + i * ldy, ldy, rows, N, 1.0f, block, np);
        gemm(rows, np, r, a + i * lda, lda, 1, b, ldb, block, np, 1);
        FN(narrow)(block, np, rows, N, 1.0f, y + i * ldy, ldy);
    }
}

/* c (r, N) = a (M, r)^T x (M, N columns of ldx); c's rows are CHUNK apart. */
static void FN(turned_product)(size M, size N, size r, const float *a, size lda, const REAL *x, size ldx, float *c,
                               float *block) {
    size np = up_to_lanes(N), as_it_is = FLOATS && np == N;
    for (size i = 0; i < M; i += TILE) {
        size rows = least(TILE, M - i);
        if (!as_it_is) FN(widen)(x + i * ldx, ldx, rows, N, 1.0f, block, np);
        gemm(r, np, rows, a + i * lda, 1, lda, as_it_is ? (const float *)(x + i * ldx) : block, as_it_is ? ldx : np, c, CHUNK,
             i > 0);
    }
}

/* c (M, ld) = x (M, K) b (K, n) for rows `i` to `end` - 1, n a multiple of LANES. */
static void FN(narrow_product)(size i, size end, size K, size n, const REAL *x, size ldx, const float *b, float *c,
                               size ld, float *block) {
    if (FLOATS) {
        gemm(end - i, n, K, (const float *)(x + i * ldx), ldx, 1, b, n, c + i * ld, ld, 0);
        return;
    }
    for (; i < end; i += ROWS) {
        size rows = least(ROWS, end - i);
        FN(widen)(x + i * ldx, ldx, rows, K, 1.0f, block, up_to_lanes(K));
        gemm(rows, n, K, block, up_to_lanes(K), 1, b, n, c + i * ld, ld, 0);
    }
}

/* One thread's share of h (M, ld) = x A^T of each part; behind it all have theirs. */
static void FN(narrow_forward)(const REAL *x, size M, size K, const Part *parts, int count, float *h, size ld,
                               float *shared, float *mine) {
    size first, end;
    share(K, LANES, THREAD, TEAM, &first, &end);
    for (int p = 0; p < count; p++)
        turn_padded(parts[p].A + first, K, parts[p].r, end - first,
                    shared + parts[p].at * K + first * up_to_lanes(parts[p].r), up_to_lanes(parts[p].r), 1.0f);
    BARRIER
    share(M, ROWS, THREAD, TEAM, &first, &end);
    for (int p = 0; p < count; p++)
        FN(narrow_product)(first, end, K, up_to_lanes(parts[p].r), x, K, shared + parts[p].at * K, h + parts[p].at, ld, mine);
    BARRIER
}

/* The same of u (M, ld), the gradient of h, from that of the outputs, g (M, N). */
static void FN(narrow_backward)(const REAL *g, size M, size N, const Part *parts, int count, float *u, size ld,
                                float *shared, float *mine) {
    size first, end;
    for (int p = 0; p < count; p++) { /* B with rows of a multiple of LANES */
        size r = parts[p].r, rp = up_to_lanes(r);
        share(parts[p].outputs, 1, THREAD, TEAM, &first, &end);
        for (size n = first; n < end; n++) {
            float *row = shared + parts[p].at * N + n * rp;
            for (size j = 0; j < r; j++) row[j] = parts[p].B[n * r + j] * parts[p].scaling;
            for (size j = r; j < rp; j++) row[j] = 0.0f;
        }
    }
    BARRIER
    share(M, ROWS, THREAD, TEAM, &first, &end);
    for (int p = 0; p < count; p++)
        FN(narrow_product)(first, end, parts[p].outputs, up_to_lanes(parts[p].r), g + parts[p].start, N,
                           shared + parts[p].at * N, u + parts[p].at, ld, mine);
    BARRIER
}

/* One thread's share of the gradients of the parts' A and B, into `of_A` and `of_B`, from x (M, K), g (M, N), h and u. */
static void FN(factor_gradients)(const REAL *g, const REAL *x, const float *h, size M, size K, size N, const Part *parts,
                                 int count, const float *u, size ld, float *mine) {
    float *sums = mine + TILE * CHUNK;
    size first, end;
    for (int p = 0; p < count; p++) {
        const Part *part = parts + p;
        share(part->outputs, CHUNK, THREAD, TEAM, &first, &end);
        for (size n = first; n < end; n += CHUNK) {
            size columns = least(CHUNK, end - n);
            FN(turned_product)(M, columns, up_to_lanes(part->r), h + part->at, ld, g + part->start + n, N, sums, mine);
            turn_padded(sums, CHUNK, part->r, columns, part->of_B + n * part->r, part->r, part->scaling);
        }
    }
    share(K, CHUNK, THREAD, TEAM, &first, &end);
    for (size n = first; n < end; n += CHUNK) {
        size columns = least(CHUNK, end - n);
        FN(turned_product)(M, columns, ld, u, ld, x + n, K, sums, mine);
        for (int p = 0; p < count; p++)
            for (size j = 0; j < parts[p].r; j++)
                memcpy(parts[p].of_A + j * K + n, sums + (parts[p].at + j) * CHUNK, columns * sizeof(float));
    }
}

/* y (M, N) += what the parts add to it, and h (M, ld) x A^T. `shared` and `scratch` as `lora_shared` and `lora_floats` say. */
void FN(lora_forward)(const REAL *x, REAL *y, size M, size K, size N, const Part *parts, int count, float *h,
                      size ld, float *shared, float *scratch, size floats, int threads) {
#ifdef WITH_AMX
    if (amx_fits(M, K, parts, count)) {
        amx_lora_forward(x, NULL, y, M, K, N, parts, count, h, ld, shared, scratch, floats, threads);
        return;
    }
#endif
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats;
        size first, end;
        FN(narrow_forward)(x, M, K, parts, count, h, ld, shared, mine);
        for (int p = 0; p < count; p++) {
            const Part *part = parts + p;
            float *turned = mine + TILE * CHUNK;
            share(part->outputs, CHUNK, THREAD, TEAM, &first, &end);
            for (size n = first; n < end; n += CHUNK) {
                size columns = least(CHUNK, end - n);
                turn_padded(part->B + n * part->r, part->r, columns, part->r, turned, CHUNK, part->scaling);
                FN(add_product)(M, columns, part->r, h + part->at, ld, turned, CHUNK, y + part->start + n, N, mine);
            }
        }
    }
}

/* From the gradient g (M, N) of the outputs: gx (M, K) += that of x (NULL: unwanted), and those of the parts' A and B
   into `of_A` and `of_B` (with x NULL: unwanted); u (M, ld) is that of h. */
void FN(lora_backward)(const REAL *g, const REAL *x, const float *h, REAL *gx, size M, size K, size N,
                       const Part *parts, int count, float *u, size ld, float *shared, float *scratch, size floats,
                       int threads) {
#ifdef WITH_AMX
    if (amx_fits(M, K, parts, count)) {
        amx_lora_backward(g, x, h, NULL, gx, M, K, N, parts, count, u, ld, shared, scratch, floats, threads);
        return;
    }
#endif
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats, *sums = mine + TILE * CHUNK;
        size first, end;
        FN(narrow_backward)(g, M, N, parts, count, u, ld, shared, mine);
        if (x) FN(factor_gradients)(g, x, h, M, K, N, parts, count, u, ld, mine);
        share(K, CHUNK, THREAD, TEAM, &first, &end);
        for (size n = first; n < end && gx; n += CHUNK) { /* all A's under each other */
            size columns = least(CHUNK, end - n);
            memset(sums, 0, ld * CHUNK * sizeof(float));
            for (int p = 0; p < count; p++)
                for (size j = 0; j < parts[p].r; j++)
                    memcpy(sums + (parts[p].at + j) * CHUNK, parts[p].A + j * K + n, columns * sizeof(float));
            FN(add_product)(M, columns, ld, u, ld, sums, CHUNK, gx + n, K, mine);
        }
    }
}
