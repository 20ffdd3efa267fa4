/* Rows of a dtype as rows of floats and back; included once for each dtype. */

/* (n, D) rows -> (n, ld) floats times `factor`; what stands behind D is zero. */
static void FN(widen)(const REAL *from, size ldfrom, size n, size D, float factor, float *to, size ld) {
    for (size i = 0; i < n; i++) {
        size d = 0;
        for (; d + LANES <= D; d += LANES)
            for (size e = 0; e < LANES; e++) to[i * ld + d + e] = LOAD(from + i * ldfrom + d + e) * factor;
        for (; d < ld; d++) to[i * ld + d] = d < D ? LOAD(from + i * ldfrom + d) * factor : 0.0f;
    }
}

/* (n, ld) floats times `factor` -> (n, D) rows. */
static void FN(narrow)(const float *from, size ld, size n, size D, float factor, REAL *to, size ldto) {
    for (size i = 0; i < n; i++) {
        size d = 0;
        for (; d + LANES <= D; d += LANES)
            for (size e = 0; e < LANES; e++) STORE(to + i * ldto + d + e, from[i * ld + d + e] * factor);
        for (; d < D; d++) STORE(to + i * ldto + d, from[i * ld + d] * factor);
    }
}

/* Fetches into the first cache what is wanted of a row, or of what is written there, some microseconds later: the
   processor's own fetching begins anew with each page. */
INLINE void FN(fetch)(const REAL *from, size n, const int write) {
    for (size i = 0; i < n; i += LINE_BYTES / sizeof(REAL)) {
        if (write)
            __builtin_prefetch(from + i, 1);
        else
            __builtin_prefetch(from + i);
    }
}
