/* The same layer in plain double loops, and its gradients by central differences: what the examples are checked against. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>

/* tokens, hidden size, expert width, experts, experts a token */
enum { T = 7, D = 6, F = 5, E = 4, K = 2 };

/* The parameters of the layer, one behind the other. */
enum { X = T * D, LOGITS = T * E, W1 = E * 2 * F * D, W2 = E * D * F };

typedef struct layer {
  double x[X], logits[LOGITS], w1[W1], w2[W2];
} layer;

/* A number in (-1, 1) that depends on the place alone. */
static double noise(uint64_t seed, uint64_t place) {
  uint64_t bits = (seed + place + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return (double)(bits >> 11) / 4503599627370496.0 - 1.0;
}

static double silu(double v) { return v / (1.0 + exp(-v)); }

/* y[T, D]: softmax over the experts, the K best of it, renormalised; SwiGLU experts; weighted sum. */
static void reference_forward(const layer *p, double *y) {
  for (int t = 0; t < T; t++) {
    double score[E], sum = 0.0, total = 0.0;
    int chosen[K];
    for (int e = 0; e < E; e++) sum += score[e] = exp(p->logits[t * E + e]);
    for (int k = 0; k < K; k++) {
      int best = -1;
      for (int e = 0; e < E; e++) {
        int taken = 0;
        for (int other = 0; other < k; other++) taken |= chosen[other] == e;
        if (!taken && (best < 0 || score[e] > score[best])) best = e;
      }
      chosen[k] = best;
      total += score[best] / sum;
    }
    for (int c = 0; c < D; c++) y[t * D + c] = 0.0;
    for (int k = 0; k < K; k++) {
      const int e = chosen[k];
      double act[F];
      for (int f = 0; f < F; f++) {
        double gate = 0.0, up = 0.0;
        for (int c = 0; c < D; c++) {
          gate += p->w1[(e * 2 * F + f) * D + c] * p->x[t * D + c];
          up += p->w1[(e * 2 * F + F + f) * D + c] * p->x[t * D + c];
        }
        act[f] = silu(gate) * up;
      }
      for (int c = 0; c < D; c++)
        for (int f = 0; f < F; f++) y[t * D + c] += score[e] / sum / total * p->w2[(e * D + c) * F + f] * act[f];
    }
  }
}

static inline double reference_loss(const layer *p, const double *dy) {
  double y[T * D], loss = 0.0;
  reference_forward(p, y);
  for (int i = 0; i < T * D; i++) loss += y[i] * dy[i];
  return loss;
}

/* d loss / d *parameter, where `parameter` points into `p`. */
static inline double reference_gradient(layer *p, double *parameter, const double *dy) {
  const double kept = *parameter, step = 1e-5;
  *parameter = kept + step;
  const double above = reference_loss(p, dy);
  *parameter = kept - step;
  const double below = reference_loss(p, dy);
  *parameter = kept;
  return (above - below) / (2.0 * step);
}

/* Says how far two numbers are apart if that is more than `tolerance`; 1 if so. */
static int differs(const char *what, int place, double ours, double reference, double tolerance) {
  if (fabs(ours - reference) <= tolerance * (1.0 + fabs(reference))) return 0;
  printf("%s[%d] is %.9g, the reference has %.9g\n", what, place, ours, reference);
  return 1;
}

#endif
