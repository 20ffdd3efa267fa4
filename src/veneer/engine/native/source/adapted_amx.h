/* A frozen layer with its adapters as one product, for bf16 with AMX: what lora.h has in two. M is a multiple of 16, K
   and N are of 32, and the parts' shapes are the tiles' (`frozen_takes`). */

#ifdef HAS_AMX

int frozen_possible_bf16(void) { return amx_allowed(); }
int frozen_takes_bf16(size M, size K, const Part *parts, int count) {
    for (int p = 0; p < count; p++)
        if (parts[p].start % PANEL) return 0;
    return M % LANES == 0 && (!count || amx_fits(M, K, parts, count));
}

/* y (M, N) = x (M, K) times a frozen weight in tiles, + bias + residual + what the parts add; bias and residual may be
   NULL. h (M, ld) as in `lora_forward`. */
void frozen_forward_bf16(const bf16 *x, const bf16 *tiles, const bf16 *bias, const bf16 *residual, bf16 *y, size M, size K,
                    size N, const Part *parts, int count, float *h, size ld, float *shared, float *scratch, size floats,
                    int threads) {
    Frozen frozen = {tiles, bias, residual, y};
    amx_lora_forward(x, &frozen, y, M, K, N, parts, count, h, ld, shared, scratch, floats, threads);
}

/* gx (M, K) = g (M, N) times the turned weight's tiles, + beside (or NULL) + what `lora_backward` adds. */
void frozen_backward_bf16(const bf16 *g, const bf16 *tiles, const bf16 *beside, const bf16 *x, const float *h, bf16 *gx,
                     size M, size K, size N, const Part *parts, int count, float *u, size ld, float *shared,
                     float *scratch, size floats, int threads) {
    Frozen frozen = {tiles, NULL, beside, gx};
    amx_lora_backward(g, x, h, &frozen, gx, M, K, N, parts, count, u, ld, shared, scratch, floats, threads);
}

#endif
