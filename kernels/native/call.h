// What a call of the operator is given, and what the read of a chunk needs: its tokens, the dictionary, one softmax.
//
// Letters: B rows, T new tokens, p pending ones before them, H query heads, G key/value heads, g = H / G, L chunk, N
// capacity, n slots in use, Dk and Dv sizes, D = Dk + Dv. A batch head is a row and a key/value head. Everything is fp32,
// row after row.

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "arithmetic.h"

inline constexpr int64_t TILE = 128;  // queries, or tokens, compared with all slots at a time: their scores stay in a cache
inline constexpr int64_t WORTH_THREADS = 1 << 18;  // scores of a call for which starting threads pays

enum ReadOut { RAW = 0, UNIT = 1, GMR = 2 };
enum LearningRate { ADAPTIVE = 0, CONSTANT = 1, FLOORED = 2 };

// Rows, tokens and heads of `[B, T, heads, D]`, of any layout whose features lie side by side.
struct Tokens {
  const float* data;
  int64_t row, token, head;
  explicit Tokens(const at::Tensor& x)
      : data(x.data_ptr<float>()), row(x.stride(0)), token(x.stride(1)), head(x.stride(2)) {}
  const float* at(int64_t b, int64_t t, int64_t h) const { return data + b * row + t * token + h * head; }
};

// The slots of `[B or 1, G, N, D]`.
struct Slots {
  const float* data;
  int64_t row, head, stride;
  explicit Slots(const at::Tensor& x)
      : data(x.data_ptr<float>()), row(x.size(0) == 1 ? 0 : x.stride(0)), head(x.stride(1)), stride(x.stride(2)) {}
  const float* at(int64_t b, int64_t g) const { return data + b * row + g * head; }
};

struct Call {
  Tokens q, k, v, pending_k, pending_v;
  Slots keys, values;
  const float *beta, *slot_bias;
  const bool *mask, *pending_mask;
  int64_t mask_row, mask_token, pending_mask_row, pending_mask_token;
  const int64_t *counts, *size;
  int64_t counts_row, size_row;
  int64_t B, T, p, G, group, Dk, Dv, N, L, full_chunks;
  int64_t every;  // chunks between snapshots
  // Options.
  int64_t read_out, learning_rate;
  double rate, threshold;
  bool join_seeds, query_norm;

  int64_t D() const { return Dk + Dv; }
  bool valid(int64_t b, int64_t position) const {
    if (position < p) return pending_mask[b * pending_mask_row + position * pending_mask_token];
    return mask == nullptr || mask[b * mask_row + (position - p) * mask_token];
  }
};

// The dictionary of a batch head, as the read sees it.
struct Seen {
  const float *mu, *nu;
  int64_t mu_stride, nu_stride, n;
};

// Buffers of a thread.
struct Work {
  std::vector<float> kv, queries, scores, out, unit, log_count, half, own_half, packed, similarity, sums;
  std::vector<int64_t> valid, nearest, order, seeds, taken;
  std::vector<char> is_valid, is_seed;
  bool finite = true;
  const int64_t* prepared = nullptr;  // counts of the dictionary that was prepared last
};

inline float* room(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// The tokens of positions start to stop as normalised keys beside values; zero where masked.
inline void load_tokens(const Call& c, int64_t b, int64_t head, int64_t start, int64_t stop, Work& w) {
  const int64_t m = stop - start, D = c.D();
  float* kv = room(w.kv, m * D);
  w.is_valid.resize(m);
  w.finite = true;
  for (int64_t i = 0; i < m; ++i, kv += D) {
    const int64_t s = start + i;
    w.is_valid[i] = c.valid(b, s);
    if (!w.is_valid[i]) {
      std::fill(kv, kv + D, 0.0f);
    } else if (s < c.p) {
      std::copy_n(c.pending_k.at(b, s, head), c.Dk, kv);
      std::copy_n(c.pending_v.at(b, s, head), c.Dv, kv + c.Dk);
    } else {
      const float* k = c.k.at(b, s - c.p, head);
      scale_to(k, c.Dk, inverse_norm(k, c.Dk), kv);
      std::copy_n(c.v.at(b, s - c.p, head), c.Dv, kv + c.Dk);
    }
    w.finite = w.finite && all_finite(kv, D);
  }
}

// Step w of `mean += w (mean of the tokens - mean)` for so many tokens that join a slot, of `count` with them.
inline float rate_of(const Call& c, int64_t members, int64_t count) {
  const float adaptive = static_cast<float>(members) / static_cast<float>(std::max<int64_t>(count, 1));
  if (c.learning_rate == ADAPTIVE) return adaptive;
  const float constant = 1.0f - std::pow(static_cast<float>(1.0 - c.rate), static_cast<float>(members));
  return c.learning_rate == CONSTANT ? constant : std::max(adaptive, constant);
}

// Weight of a token in its slot's mean.
inline float share_of(const Call& c, bool seeds, int64_t members, int64_t count) {
  if (c.learning_rate == ADAPTIVE) return 1.0f / static_cast<float>(count);
  const float rate = rate_of(c, members, count);
  return seeds ? 1.0f - rate : rate / static_cast<float>(members);
}

// What the read-out adds to the logits of slots, and the means as it uses them.
inline Seen prepare(const Call& c, const int64_t* counts, Seen seen, Work& w) {
  if (c.read_out == UNIT) room(w.unit, seen.n * c.Dk);
  const bool known = c.full_chunks == 0 && w.prepared == counts;  // rows that share a dictionary come one after the other
  w.prepared = counts;
  float* log_count = room(w.log_count, seen.n);
  for (int64_t i = 0; i < seen.n && !known; ++i) log_count[i] = std::log(static_cast<float>(counts[i]));
  if (c.read_out == GMR && !known) {
    float* half = room(w.half, seen.n);
    for (int64_t i = 0; i < seen.n; ++i) half[i] = square(seen.mu + i * seen.mu_stride, c.Dk) / 2;
  } else if (c.read_out == UNIT) {
    float* unit = w.unit.data();
    for (int64_t i = 0; i < seen.n && !known; ++i) {
      const float* mu = seen.mu + i * seen.mu_stride;
      scale_to(mu, c.Dk, inverse_norm(mu, c.Dk), unit + i * c.Dk);
    }
    seen.mu = unit;
    seen.mu_stride = c.Dk;
  }
  return seen;
}

// One softmax of a query's scores `[n + seen]` over slots and the first `own` of its chunk's tokens, times its sum;
// returns the inverse of that sum. Tokens after them get no weight.
inline float softmax(const Call& c, float* scores, int64_t n, int64_t own, int64_t seen, float beta, float bias, Work& w) {
  const float* log_count = w.log_count.data();
  float most = -std::numeric_limits<float>::infinity();
  if (c.read_out == GMR) {
    const float *half = w.half.data(), *own_half = w.own_half.data();
    for (int64_t i = 0; i < n; ++i) scores[i] -= beta * half[i];
    for (int64_t j = 0; j < own; ++j) scores[n + j] -= beta * own_half[j];
  }
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    scores[i] += log_count[i] + bias;
    most = scores[i] > most ? scores[i] : most;
  }
  for (int64_t j = 0; j < own; ++j) {
    if (!w.is_valid[j]) scores[n + j] = -std::numeric_limits<float>::infinity();
    most = scores[n + j] > most ? scores[n + j] : most;
  }
  float sum = exponentials(scores, n, most);
  sum += exponentials(scores + n, own, most);
  std::fill(scores + n + own, scores + n + seen, 0.0f);
  return 1.0f / sum;
}

// A call, of what Python gives: see operator.py.
inline Call call_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                    const std::optional<at::Tensor>& slot_bias, const std::optional<at::Tensor>& mask,
                    at::TensorList state, at::IntArrayRef sizes, at::ArrayRef<double> numbers) {
  const at::Tensor &counts = state[0], &keys = state[1], &values = state[2], &size = state[3], &pending_k = state[4],
                   &pending_v = state[5], &pending_mask = state[6];
  return {Tokens(q), Tokens(k), Tokens(v), Tokens(pending_k), Tokens(pending_v), Slots(keys), Slots(values),
         beta.data_ptr<float>(),
         slot_bias ? slot_bias->data_ptr<float>() : nullptr,
         mask ? mask->data_ptr<bool>() : nullptr,
         pending_mask.data_ptr<bool>(),
         mask ? mask->stride(0) : 0, mask ? mask->stride(1) : 0, pending_mask.stride(0), pending_mask.stride(1),
         counts.data_ptr<int64_t>(), size.data_ptr<int64_t>(),
         counts.size(0) == 1 ? 0 : counts.stride(0), size.size(0) == 1 ? 0 : size.stride(0),
         q.size(0), q.size(1), pending_k.size(1), k.size(2), q.size(2) / k.size(2), q.size(3), v.size(3),
         counts.size(2), /*L=*/sizes[0], /*full_chunks=*/sizes[1], /*every=*/sizes[6], /*read_out=*/sizes[2], /*learning_rate=*/sizes[3],
         /*rate=*/numbers[0], /*threshold=*/numbers[1], /*join_seeds=*/sizes[4] != 0, /*query_norm=*/sizes[5] != 0};
}

// Scores of a batch head, by which the threads of a call are reckoned.
inline int64_t grain(const Call& c) {
  return std::max<int64_t>(1, WORTH_THREADS / std::max<int64_t>(1, c.T * std::max<int64_t>(1, c.group) * (c.N + c.L)));
}
