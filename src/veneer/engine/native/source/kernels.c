/* The engine's kernels, each in fp32 and in bf16; sums are in fp32 in both. */

#include "common.h"

#define REAL float
#define FLOATS 1
#define FN(name) name##_f32
#define LOAD load_f32
#define STORE store_f32
#include "rows.h"
#include "activations.h"
#include "norms.h"
#include "texts.h"
#include "attention_unit.h"
#include "attention.h"
#include "lora.h"
#include "panels.h"
#undef REAL
#undef FLOATS
#undef FN
#undef LOAD
#undef STORE

#define REAL bf16
#define FLOATS 0
#define FN(name) name##_bf16
#define LOAD load_bf16
#define STORE store_bf16
#include "rows.h"
#include "activations.h"
#include "norms.h"
#include "texts.h"
#include "amx.h"
#include "attention_amx.h"
#include "frozen_amx.h"
#include "lora_amx.h"
#ifdef HAS_AMX
#define WITH_AMX
#endif
#include "attention_unit.h"
#include "attention.h"
#include "lora.h"
#include "adapted_amx.h"
