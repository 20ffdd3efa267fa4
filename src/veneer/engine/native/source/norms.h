/* Norms of rows and their gradients: the layer norm (Ba, Kiros & Hinton 2016, section 3), and without means the
   root-mean-square norm (Zhang & Sennrich 2019, section 4); included once for each dtype.

   A row is read two or three times, while it is in the first cache, and one that comes later is fetched; everything is in
   fp32 until it is stored. */

/* y (rows, C) = (x - mean) / sqrt(mean square + eps) (weight + added) + bias, with means (rows,) and inverse roots (rows,);
   mean is NULL where none is taken away, bias where none is added. `twice`: rounded before the weight too. */
void FN(norm)(const REAL *x, const REAL *weight, const REAL *bias, float added, float eps, int twice, REAL *y, float *mean,
              float *inverse, size rows, size C, int threads) {
    PARALLEL(threads) {
        size first, end;
        share(rows, 1, THREAD, TEAM, &first, &end);
        for (size i = first; i < end; i++) {
            const REAL *from = x + i * C;
            REAL *to = y + i * C;
            FN(fetch)(from + ROWS_AHEAD * C, C, 0);
            FN(fetch)(to + ROWS_AHEAD * C, C, 1);
            float sum = 0.0f, squares = 0.0f;
            if (mean)
                SUMS(sum) for (size j = 0; j < C; j++) sum += LOAD(from + j);
            float off = sum / C;
            SUMS(squares) for (size j = 0; j < C; j++) squares += (LOAD(from + j) - off) * (LOAD(from + j) - off);
            float times = 1.0f / sqrtf(squares / C + eps);
            if (mean) mean[i] = off;
            inverse[i] = times;
            if (twice)
                for (size j = 0; j < C; j++) {
                    REAL normed;
                    STORE(&normed, (LOAD(from + j) - off) * times);
                    STORE(to + j, LOAD(&normed) * (LOAD(weight + j) + added));
                }
            else if (bias)
                for (size j = 0; j < C; j++)
                    STORE(to + j, (LOAD(from + j) - off) * times * (LOAD(weight + j) + added) + LOAD(bias + j));
            else
                for (size j = 0; j < C; j++) STORE(to + j, (LOAD(from + j) - off) * times * (LOAD(weight + j) + added));
        }
    }
}

/* gx (rows, C) = the gradient of x from that of y, + beside (or NULL). With g = grad (weight + added) and n the normed x:
   inverse (g - mean(g) - n mean(g n)), without mean(g) where mean is NULL. */
void FN(norm_gradient)(const REAL *grad, const REAL *x, const REAL *weight, float added, const float *mean,
                       const float *inverse, const REAL *beside, REAL *gx, size rows, size C, int threads) {
    PARALLEL(threads) {
        size first, end;
        share(rows, 1, THREAD, TEAM, &first, &end);
        for (size i = first; i < end; i++) {
            const REAL *g = grad + i * C, *from = x + i * C, *more = beside + i * C;
            REAL *to = gx + i * C;
            FN(fetch)(g + ROWS_AHEAD * C, C, 0);
            FN(fetch)(from + ROWS_AHEAD * C, C, 0);
            FN(fetch)(to + ROWS_AHEAD * C, C, 1);
            if (beside) FN(fetch)(more + ROWS_AHEAD * C, C, 0);
            float off = mean ? mean[i] : 0.0f, times = inverse[i], sum = 0.0f, along = 0.0f;
            SUMS(sum, along) for (size j = 0; j < C; j++) {
                float own = LOAD(g + j) * (LOAD(weight + j) + added);
                sum += own;
                along += own * (LOAD(from + j) - off);
            }
            float all = mean ? sum / C : 0.0f, slope = along / C * times * times;
#define OWN (LOAD(g + j) * (LOAD(weight + j) + added) - all - (LOAD(from + j) - off) * slope) * times
            if (beside)
                for (size j = 0; j < C; j++) STORE(to + j, OWN + LOAD(more + j));
            else
                for (size j = 0; j < C; j++) STORE(to + j, OWN);
#undef OWN
        }
    }
}
