/* Activations and their gradients, element by element; included once for each dtype. */

/* GELU's tanh form (Hendrycks & Gimpel 2016, section 2) as x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE float FN(gelu_tanh_of)(float x) {
    return x / (1.0f + FN(e_to)(-x * (1.5957691216f + 0.0713548162726f * x * x)));
}
INLINE float FN(gelu_tanh_slope)(float x) {
    float s = 1.0f / (1.0f + FN(e_to)(-x * (1.5957691216f + 0.0713548162726f * x * x)));
    return s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488178f * x * x);
}

/* The normal distribution from e = e^(-x^2 / 2): Abramowitz & Stegun 1964, 7.1.26, off by 7.5e-8 at most. */
INLINE float FN(normal)(float x, float e) {
    float t = 1.0f / fmaf(0.3275911f * 0.70710678f, fabsf(x), 1.0f);
    float p = fmaf(t, 1.061405429f, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f) * t * e * 0.5f;
    return x < 0.0f ? p : 1.0f - p;
}
INLINE float FN(gelu_of)(float x) { return x * FN(normal)(x, FN(e_to)(-0.5f * x * x)); }
INLINE float FN(gelu_slope)(float x) {
    float e = FN(e_to)(-0.5f * x * x);
    return FN(normal)(x, e) + x * e * 0.39894228f;
}

INLINE float FN(silu_of)(float x) { return x / (1.0f + FN(e_to)(-x)); }
INLINE float FN(silu_slope)(float x) {
    float s = 1.0f / (1.0f + FN(e_to)(-x));
    return s + x * s * (1.0f - s);
}

/* y (n,) = f(x), and y (n,) = grad f'(x); y may be x, and it may be grad. What is a page further is fetched meanwhile. */
#define AT_ONCE (2 * LANES)
#define A_PAGE (PAGE_BYTES / (size)sizeof(REAL))
#define ACTIVATION(f)                                                                                                 \
    INLINE void FN(f##_values)(const REAL *x, REAL *y, size n) {                                                      \
        size i = 0;                                                                                                   \
        for (; i + AT_ONCE <= n; i += AT_ONCE) {                                                                      \
            FN(fetch)(x + i + A_PAGE, AT_ONCE, 0);                                                                    \
            FN(fetch)(y + i + A_PAGE, AT_ONCE, 1);                                                                    \
            for (size e = i; e < i + AT_ONCE; e++) STORE(y + e, FN(f##_of)(LOAD(x + e)));                             \
        }                                                                                                             \
        for (; i < n; i++) STORE(y + i, FN(f##_of)(LOAD(x + i)));                                                     \
    }                                                                                                                 \
    INLINE void FN(f##_gradients)(const REAL *grad, const REAL *x, REAL *y, size n) {                                 \
        size i = 0;                                                                                                   \
        for (; i + AT_ONCE <= n; i += AT_ONCE) {                                                                      \
            FN(fetch)(x + i + A_PAGE, AT_ONCE, 0);                                                                    \
            FN(fetch)(grad + i + A_PAGE, AT_ONCE, 0);                                                                 \
            FN(fetch)(y + i + A_PAGE, AT_ONCE, 1);                                                                    \
            for (size e = i; e < i + AT_ONCE; e++) STORE(y + e, LOAD(grad + e) * FN(f##_slope)(LOAD(x + e)));         \
        }                                                                                                             \
        for (; i < n; i++) STORE(y + i, LOAD(grad + i) * FN(f##_slope)(LOAD(x + i)));                                 \
    }                                                                                                                 \
    void FN(f##_value)(const REAL *x, REAL *y, size n, int threads) {                                                 \
        PARALLEL(threads) {                                                                                           \
            size first, end;                                                                                          \
            share(n, 4096, THREAD, TEAM, &first, &end);                                                               \
            FN(f##_values)(x + first, y + first, end - first);                                                        \
        }                                                                                                             \
    }                                                                                                                 \
    void FN(f##_gradient)(const REAL *grad, const REAL *x, REAL *y, size n, int threads) {                            \
        PARALLEL(threads) {                                                                                           \
            size first, end;                                                                                          \
            share(n, 4096, THREAD, TEAM, &first, &end);                                                               \
            FN(f##_gradients)(grad + first, x + first, y + first, end - first);                                       \
        }                                                                                                             \
    }

ACTIVATION(gelu_tanh)
ACTIVATION(gelu)
ACTIVATION(silu)
#undef ACTIVATION
#undef AT_ONCE
#undef A_PAGE
