/* Packed texts as attention takes them, and how its work is divided; included once for each dtype.

   A text's queries are rows q_first[t] to q_first[t + 1] - 1 of q, its keys and values rows k_first[t] to
   k_first[t + 1] - 1 of k and v, or those that `row` names for these numbers. H heads stand side by side in a row of q,
   K in one of k and v, D numbers each. */

typedef struct {
    const REAL *q, *k, *v;
    size ldq, ldk;
    const int32_t *q_first, *k_first, *row; /* row may be NULL; where a gradient is wanted it is */
    size texts, heads, kv_heads, D;
    float scaling;
    int causal;  /* a query sees what stands before it and itself: the queries are those of a text's last tokens */
    size before; /* and no more than so many before it */
} FN(Texts);

/* One text's m queries from row q on, its n keys and values from row k on, and a key-value head; the longest text, which
   is the last, comes first. */
typedef struct {
    size q, k, m, n, head;
} FN(Task);
static FN(Task) FN(task_of)(const FN(Texts) *t, size number) {
    size text = t->texts - 1 - number / t->kv_heads, q = t->q_first[text], k = t->k_first[text];
    FN(Task) found = {q, k, t->q_first[text + 1] - q, t->k_first[text + 1] - k, number % t->kv_heads};
    return found;
}
