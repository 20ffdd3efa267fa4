/* Attention of packed texts, straight from the rows and back into them; included once for each dtype.

   Each text and key-value head is a task of its own. Its numbers are small: they are widened into a scratch, where
   scores, probabilities and gradients stay, and only rows are written. Probabilities are computed again for the
   gradient, so that nothing is kept. */

/* (n, ld) -> (ld, ldto), ldto the next multiple of LANES; `from` gets rows of zeros up to there. */
static void FN(turn)(float *from, size ld, size n, float *to, size ldto) {
    memset(from + n * ld, 0, (ldto - n) * ld * sizeof(float));
    for (size i = 0; i < ldto; i += LANES)
        for (size d = 0; d < ld; d += LANES) turn_block(from + i * ld + d, ld, to + d * ldto + i, ldto);
}

/* `widen` of a text's n keys or values from number `first` on. */
static void FN(widen_keys)(const FN(Texts) *t, const REAL *from, size first, size n, float *to, size ld) {
    if (!t->row) {
        FN(widen)(from + first * t->ldk, t->ldk, n, t->D, 1.0f, to, ld);
        return;
    }
    for (size i = 0; i < n; i++) FN(widen)(from + t->row[first + i] * t->ldk, t->ldk, 1, t->D, 1.0f, to + i * ld, ld);
}

/* s (m, ld) scores -> the softmax over what each query sees, zeros elsewhere. */
static void FN(softmax)(float *s, size m, size n, size ld, int causal, size before) {
    for (size i = 0; i < m; i++) {
        float *row = s + i * ld;
        size at = i + n - m; /* of the query among the keys */
        int32_t end = causal ? at + 1 : n, first = causal && at > before ? at - before : 0;
        size low = first / LANES * LANES, high = up_to_lanes(end);
        float tops[LANES], sums[LANES] = {0}, top = -INFINITY, sum = 0.0f;
        for (int e = 0; e < LANES; e++) tops[e] = -INFINITY;
        for (size j = low; j < high; j += LANES)
            for (int e = 0; e < LANES; e++) {
                float x = j + e < end && j + e >= first ? row[j + e] : -INFINITY;
                tops[e] = x > tops[e] ? x : tops[e];
            }
        for (int e = 0; e < LANES; e++) top = tops[e] > top ? tops[e] : top;
        for (size j = low; j < high; j += LANES)
            for (int e = 0; e < LANES; e++) {
                float x = FN(e_to)(row[j + e] - top);
                x = (int32_t)j + e < end && (int32_t)j + e >= first ? x : 0.0f;
                row[j + e] = x;
                sums[e] += x;
            }
        for (int e = 0; e < LANES; e++) sum += sums[e];
        float inverse = 1.0f / sum;
        for (size j = low; j < high; j++) row[j] *= inverse;
        memset(row, 0, low * sizeof(float));
        memset(row + high, 0, (ld - high) * sizeof(float));
    }
}

/* dp (m, ld) -> p (dp - the sum of p dp), the gradient of the scores. */
static void FN(softmax_gradient)(const float *p, float *dp, size m, size n, size ld, int causal) {
    for (size i = 0; i < m; i++, p += ld, dp += ld) {
        size high = up_to_lanes(causal ? i + 1 : n);
        float sums[LANES] = {0}, along = 0.0f;
        for (size j = 0; j < high; j += LANES)
            for (int e = 0; e < LANES; e++) sums[e] += p[j + e] * dp[j + e];
        for (int e = 0; e < LANES; e++) along += sums[e];
        for (size j = 0; j < high; j++) dp[j] = p[j] * (dp[j] - along);
        memset(dp + high, 0, (ld - high) * sizeof(float));
    }
}

/* c (m, n) = a b by blocks of ROWS queries, each with the keys up to its last query where `causal`; `past` keys stand
   before the first query. */
static void FN(scores)(size m, size n, size k, const float *a, size lda, const float *b, size ldb, float *c, size ldc,
                       int causal, size past) {
    for (size i = 0; i < m; i += ROWS) {
        size rows = least(ROWS, m - i), columns = causal ? least(n, up_to_lanes(past + i + rows)) : n;
        gemm(rows, columns, k, a + i * lda, lda, 1, b, ldb, c + i * ldc, ldc, 0);
    }
}

/* c (m, n) = a (m, k) b (k, n), where a has zeros behind its diagonal if `causal`, which begins in column `past`. */
static void FN(weighted)(size m, size n, size k, const float *a, size lda, const float *b, size ldb, float *c,
                         size ldc, int causal, size past) {
    for (size i = 0; i < m; i += ROWS) {
        size rows = least(ROWS, m - i);
        gemm(rows, n, causal ? least(k, past + i + rows) : k, a + i * lda, lda, 1, b, ldb, c + i * ldc, ldc, 0);
    }
}

/* c (n, d) = a^T b, a (m, n) and b (m, d), where a has zeros behind its diagonal if `causal`. */
static void FN(turned)(size n, size d, size m, const float *a, size lda, const float *b, size ldb, float *c, size ldc,
                       int causal) {
    for (size i = 0; i < n; i += ROWS) {
        size first = causal ? least(i, m) : 0;
        gemm(least(ROWS, n - i), d, m - first, a + first * lda + i, 1, lda, b + first * ldb, ldb, c + i * ldc, ldc, 0);
    }
}

/* Floats of scratch that one thread wants for texts of up to so many queries and keys. */
size FN(attention_scratch)(size queries, size keys, size D) {
    size of_unit = FN(unit_floats)(&queries, keys, D);
    size m = up_to_lanes(queries), n = up_to_lanes(keys), d = up_to_lanes(D);
    return most(of_unit, (2 * m + most(m, n) + 5 * n) * d + 2 * m * n);
}

/* One task of `attend`; `out` as there. */
INLINE void FN(attend_task)(const FN(Texts) *t, const FN(Task) *at, REAL *out, size ldo, float *scratch) {
    size q0 = at->q, k0 = at->k, m = at->m, n = at->n, mp = up_to_lanes(m), np = up_to_lanes(n), head = at->head;
    size d = up_to_lanes(t->D), times = t->heads / t->kv_heads;
    float *q = scratch, *v = q + mp * d, *k = v + np * d, *turned = k + np * d, *s = turned + d * np, *o = s + m * np;
    FN(widen_keys)(t, t->k + head * t->D, k0, n, k, d);
    FN(widen_keys)(t, t->v + head * t->D, k0, n, v, d);
    FN(turn)(k, d, n, turned, np);
    for (size h = head * times; h < (head + 1) * times; h++) {
        FN(widen)(t->q + q0 * t->ldq + h * t->D, t->ldq, m, t->D, t->scaling, q, d);
        FN(scores)(m, np, d, q, d, turned, np, s, np, t->causal, n - m);
        FN(softmax)(s, m, n, np, t->causal, t->before);
        FN(weighted)(m, d, n, s, np, v, d, o, d, t->causal, n - m);
        FN(narrow)(o, d, m, t->D, 1.0f, out + q0 * ldo + h * t->D, ldo);
    }
}

/* out (rows, ldo): the texts' tokens; the rows from q_first[texts] on are set to zero. */
void FN(attend)(const FN(Texts) *t, REAL *out, size ldo, size rows, float *scratch, size floats, int threads) {
    for (size row = t->q_first[t->texts]; row < rows; row++) memset(out + row * ldo, 0, t->heads * t->D * sizeof(REAL));
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats;
        FN(Unit) unit = FN(entered)(t->D);
#pragma omp for schedule(dynamic, 1)
        for (size task = 0; task < t->texts * t->kv_heads; task++) {
            FN(Task) at = FN(task_of)(t, task);
            if (!FN(unit_attends)(&unit, t, &at, out, ldo, mine)) FN(attend_task)(t, &at, out, ldo, mine);
        }
        FN(leave)(&unit);
    }
}

/* One task of `attend_gradient`; grad and the gradients as there. */
INLINE void FN(gradient_task)(const FN(Texts) *t, const FN(Task) *at, const REAL *grad, size ldo, REAL *gq, REAL *gk,
                              REAL *gv, float *scratch) {
    size q0 = at->q, k0 = at->k, m = at->m, n = at->n, mp = up_to_lanes(m), np = up_to_lanes(n), head = at->head;
    size d = up_to_lanes(t->D), times = t->heads / t->kv_heads;
    float *q = scratch, *k = q + mp * d, *g = k + np * d, *of = g + mp * d, *kt = of + most(mp, np) * d;
    float *vt = kt + d * np, *sum_k = vt + d * np, *sum_v = sum_k + np * d, *s = sum_v + np * d, *ds = s + m * np;
    FN(widen)(t->v + k0 * t->ldk + head * t->D, t->ldk, n, t->D, 1.0f, k, d);
    FN(turn)(k, d, n, vt, np);
    FN(widen)(t->k + k0 * t->ldk + head * t->D, t->ldk, n, t->D, 1.0f, k, d);
    FN(turn)(k, d, n, kt, np);
    for (size h = head * times; h < (head + 1) * times; h++) {
        int first = h == head * times;
        FN(widen)(t->q + q0 * t->ldq + h * t->D, t->ldq, m, t->D, t->scaling, q, d);
        FN(widen)(grad + q0 * ldo + h * t->D, ldo, m, t->D, 1.0f, g, d);
        FN(scores)(m, np, d, q, d, kt, np, s, np, t->causal, 0);
        FN(softmax)(s, m, n, np, t->causal, t->before);
        FN(scores)(m, np, d, g, d, vt, np, ds, np, t->causal, 0);
        FN(softmax_gradient)(s, ds, m, n, np, t->causal);
        FN(weighted)(m, d, n, ds, np, k, d, of, d, t->causal, 0);
        FN(narrow)(of, d, m, t->D, t->scaling, gq + q0 * t->ldq + h * t->D, t->ldq);
        FN(turned)(n, d, m, ds, np, q, d, first ? sum_k : of, d, t->causal);
        if (!first)
            for (size i = 0; i < n * d; i++) sum_k[i] += of[i];
        FN(turned)(n, d, m, s, np, g, d, first ? sum_v : of, d, t->causal);
        if (!first)
            for (size i = 0; i < n * d; i++) sum_v[i] += of[i];
    }
    FN(narrow)(sum_k, d, n, t->D, 1.0f, gk + k0 * t->ldk + head * t->D, t->ldk);
    FN(narrow)(sum_v, d, n, t->D, 1.0f, gv + k0 * t->ldk + head * t->D, t->ldk);
}

/* The gradients of q, k and v, laid out as they are, from that of the output (grad, ldo). The keys' and values' rows are
   in `all`, ldk numbers a row; those from k_first[texts] on are set to zero. */
void FN(attend_gradient)(const FN(Texts) *t, const REAL *grad, size ldo, REAL *gq, REAL *gk, REAL *gv, REAL *all,
                         size rows, float *scratch, size floats, int threads) {
    size tokens = t->k_first[t->texts];
    if (rows > tokens) memset(all + tokens * t->ldk, 0, (rows - tokens) * t->ldk * sizeof(REAL));
    PARALLEL(threads) {
        float *mine = scratch + THREAD * floats;
        FN(Unit) unit = FN(entered)(t->D);
#pragma omp for schedule(dynamic, 1)
        for (size task = 0; task < t->texts * t->kv_heads; task++) {
            FN(Task) at = FN(task_of)(t, task);
            if (!FN(unit_goes_back)(&unit, t, &at, grad, ldo, gq, gk, gv, mine))
                FN(gradient_task)(t, &at, grad, ldo, gq, gk, gv, mine);
        }
        FN(leave)(&unit);
    }
}
