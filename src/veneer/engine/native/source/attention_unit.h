/* What a matrix unit takes over of a dtype's attention: the tasks with enough queries where there is one, else nothing.

   A thread enters it before its first task and leaves it behind its last. Included once for each dtype. */

#ifdef WITH_AMX

typedef struct {
    int used;
    TileShapes before;
} FN(Unit);

INLINE FN(Unit) FN(entered)(size D) {
    FN(Unit) unit = {.used = amx_attends(D)};
    if (unit.used) amx_enter(&unit.before);
    return unit;
}
INLINE void FN(leave)(const FN(Unit) *unit) {
    if (unit->used) amx_leave(&unit->before);
}

/* A task of `attend`, as there; whether it was done. */
INLINE int FN(unit_attends)(const FN(Unit) *unit, const FN(Texts) *t, const FN(Task) *at, REAL *out, size ldo,
                            float *scratch) {
    if (!unit->used || at->m < FEWEST) return 0;
    amx_attend(t, at, out, ldo, (char *)scratch);
    return 1;
}

/* A task of `attend_gradient`, as there; whether it was done. */
INLINE int FN(unit_goes_back)(const FN(Unit) *unit, const FN(Texts) *t, const FN(Task) *at, const REAL *grad, size ldo,
                              REAL *gq, REAL *gk, REAL *gv, float *scratch) {
    if (!unit->used || at->m < FEWEST_OF_GRADIENT) return 0;
    amx_attend_gradient(t, at, grad, ldo, gq, gk, gv, (char *)scratch);
    return 1;
}

/* Floats of scratch that it wants for texts of up to so many queries and keys; `queries` becomes what a text has at most
   that it does not take. */
INLINE size FN(unit_floats)(size *queries, size keys, size D) {
    if (!amx_attends(D)) return 0;
    size floats = amx_attention_floats(*queries, keys, D);
    *queries = least(*queries, FEWEST_OF_GRADIENT);
    return floats;
}

#else

typedef struct {
    int none;
} FN(Unit);

INLINE FN(Unit) FN(entered)(size D) { return (FN(Unit)){0}; }
INLINE void FN(leave)(const FN(Unit) *unit) {}
INLINE int FN(unit_attends)(const FN(Unit) *unit, const FN(Texts) *t, const FN(Task) *at, REAL *out, size ldo,
                            float *scratch) {
    return 0;
}
INLINE int FN(unit_goes_back)(const FN(Unit) *unit, const FN(Texts) *t, const FN(Task) *at, const REAL *grad, size ldo,
                              REAL *gq, REAL *gk, REAL *gv, float *scratch) {
    return 0;
}
INLINE size FN(unit_floats)(size *queries, size keys, size D) { return 0; }

#endif
