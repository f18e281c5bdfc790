/* A Mixture-of-Experts layer from C, forward and backward on the CPU backend: route, plan, run the experts; the gradients of
 * the input, the experts' weights and the logits. Every result is checked against plain double loops. */
#include <moe.h>
#include <stdlib.h>

#include "reference.h"

/* Ends the program with libmoe's own words. */
static void check(moe_status_t status) {
  if (status == MOE_STATUS_SUCCESS) return;
  fprintf(stderr, "%s: %s\n", moe_status_string(status), moe_last_error_message());
  exit(1);
}

static moe_tensor_t fp32(float *data) {
  moe_tensor_t tensor = MOE_TENSOR_INIT;
  tensor.dtype = MOE_DTYPE_FP32;
  tensor.data = data;
  return tensor;
}

static moe_tensor_t int32(int32_t *data) {
  moe_tensor_t tensor = MOE_TENSOR_INIT;
  tensor.dtype = MOE_DTYPE_INT32;
  tensor.data = data;
  return tensor;
}

/* Runs an operation with the workspace that it asks for. */
#define RUN(op, ctx, desc, args)                                                        \
  do {                                                                                  \
    uint64_t bytes = 0;                                                                 \
    check(moe_##op##_workspace_size(ctx, desc, &bytes));                                \
    void *workspace = bytes ? aligned_alloc(256, (size_t)(bytes + 255) / 256 * 256) : NULL; \
    check(moe_##op(ctx, desc, args, workspace, bytes, NULL));                           \
    free(workspace);                                                                    \
  } while (0)

/* The parameters in fp32, as the library reads them, and what it makes of them. */
typedef struct buffers {
  float x[X], logits[LOGITS], w1[W1], w2[W2], dy[T * D];
  float y[T * D], dx[X], dlogits[LOGITS], dw1[W1], dw2[W2];
} buffers;

static void run_layer(const moe_context_t *ctx, buffers *b) {
  moe_router_desc_t router = MOE_ROUTER_DESC_INIT;
  router.logits_dtype = MOE_DTYPE_FP32;
  router.num_tokens = T;
  router.num_experts = E;
  router.top_k = K;
  router.renormalize = MOE_ON;

  int32_t ids[T * K];
  float weights[T * K];
  moe_router_fwd_args_t route = MOE_ROUTER_FWD_ARGS_INIT;
  route.logits = fp32(b->logits);
  route.ids = int32(ids);
  route.weights = fp32(weights);
  RUN(router_fwd, ctx, &router, &route);

  moe_dispatch_desc_t dispatch = MOE_DISPATCH_DESC_INIT;
  dispatch.num_tokens = T;
  dispatch.num_experts = E;
  dispatch.top_k = K;
  int64_t rows = 0;
  check(moe_dispatch_rows_max(ctx, &dispatch, &rows));

  int64_t group_offsets[E + 1];
  int32_t row_of_slot[T * K];
  int32_t *slot_of_row = malloc((size_t)rows * sizeof *slot_of_row);
  int32_t *token_of_row = malloc((size_t)rows * sizeof *token_of_row);
  moe_dispatch_plan_args_t plan = MOE_DISPATCH_PLAN_ARGS_INIT;
  plan.ids = int32(ids);
  plan.group_offsets = group_offsets;
  plan.row_of_slot = int32(row_of_slot);
  plan.slot_of_row = int32(slot_of_row);
  plan.token_of_row = int32(token_of_row);
  RUN(dispatch_plan, ctx, &dispatch, &plan);

  moe_expert_mlp_desc_t mlp = MOE_EXPERT_MLP_DESC_INIT;
  mlp.dtype = MOE_DTYPE_FP32;
  mlp.num_tokens = T;
  mlp.rows_max = rows;
  mlp.top_k = K;
  mlp.num_experts = E;
  mlp.hidden_size = D;
  mlp.ffn_size = F;
  mlp.activation = MOE_ACTIVATION_SWIGLU;

  float *h = malloc((size_t)rows * 2 * F * sizeof *h);
  moe_expert_mlp_fwd_args_t forward = MOE_EXPERT_MLP_FWD_ARGS_INIT;
  forward.x = fp32(b->x);
  forward.w1 = fp32(b->w1);
  forward.w2 = fp32(b->w2);
  forward.y = fp32(b->y);
  forward.group_offsets = group_offsets;
  forward.token_of_row = int32(token_of_row);
  forward.slot_of_row = int32(slot_of_row);
  forward.row_of_slot = int32(row_of_slot);
  forward.weights = fp32(weights);
  forward.h = fp32(h);
  RUN(expert_mlp_fwd, ctx, &mlp, &forward);

  float dweights[T * K];
  moe_expert_mlp_bwd_args_t backward = MOE_EXPERT_MLP_BWD_ARGS_INIT;
  backward.dy = fp32(b->dy);
  backward.x = forward.x;
  backward.w1 = forward.w1;
  backward.w2 = forward.w2;
  backward.h = forward.h;
  backward.group_offsets = group_offsets;
  backward.token_of_row = forward.token_of_row;
  backward.slot_of_row = forward.slot_of_row;
  backward.row_of_slot = forward.row_of_slot;
  backward.weights = forward.weights;
  backward.dx = fp32(b->dx);
  backward.dw1 = fp32(b->dw1);
  backward.dw2 = fp32(b->dw2);
  backward.dweights = fp32(dweights);
  backward.dh = forward.h; /* h is not needed any more */
  RUN(expert_mlp_bwd, ctx, &mlp, &backward);

  moe_router_bwd_args_t unroute = MOE_ROUTER_BWD_ARGS_INIT;
  unroute.logits = fp32(b->logits);
  unroute.ids = int32(ids);
  unroute.dweights = fp32(dweights);
  unroute.dlogits = fp32(b->dlogits);
  RUN(router_bwd, ctx, &router, &unroute);

  free(h);
  free(token_of_row);
  free(slot_of_row);
}

/* Fills the two copies of a parameter with the same numbers. */
static void fill(double *wide, float *narrow, int count, uint64_t seed) {
  for (int i = 0; i < count; i++) wide[i] = narrow[i] = (float)noise(seed << 32, (uint64_t)i);
}

static int check_gradient(const char *what, const float *ours, layer *p, double *parameters, int count, const double *dy) {
  int wrong = 0;
  for (int i = 0; i < count; i++)
    wrong += differs(what, i, (double)ours[i], reference_gradient(p, &parameters[i], dy), 1e-5);
  return wrong;
}

int main(void) {
  moe_context_t *ctx = NULL;
  check(moe_context_create(MOE_DEVICE_CPU, &ctx));

  layer p;
  buffers b;
  double y[T * D], dy[T * D];
  fill(p.x, b.x, X, 1);
  fill(p.logits, b.logits, LOGITS, 2);
  fill(p.w1, b.w1, W1, 3);
  fill(p.w2, b.w2, W2, 4);
  fill(dy, b.dy, T * D, 5);

  run_layer(ctx, &b);

  int wrong = 0;
  reference_forward(&p, y);
  for (int i = 0; i < T * D; i++) wrong += differs("y", i, (double)b.y[i], y[i], 1e-5);
  wrong += check_gradient("dx", b.dx, &p, p.x, X, dy);
  wrong += check_gradient("dw1", b.dw1, &p, p.w1, W1, dy);
  wrong += check_gradient("dw2", b.dw2, &p, p.w2, W2, dy);
  wrong += check_gradient("dlogits", b.dlogits, &p, p.logits, LOGITS, dy);

  check(moe_context_destroy(ctx));
  printf("%d tokens, %d experts, top-%d: %d numbers differ from the reference\n", T, E, K, wrong);
  return wrong != 0;
}
