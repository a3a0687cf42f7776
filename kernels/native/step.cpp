// One token of every row, as decoding takes them: it joins its open chunk and reads; dictionaries stay as they are.
//
// All that it has to fetch is the dictionary and the open chunk, once each, so loops serve better than products.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <limits>

#include "call.h"

namespace {

// Weights `[group, m]` of m rows `x` under queries `[group, Dk]` that are scaled by beta, as logits.
void logits_of(const Call& c, const float* queries, const float* x, int64_t stride, int64_t m, float* to, int64_t row) {
  for (int64_t i = 0; i < m; ++i, x += stride)
    for (int64_t r = 0; r < c.group; ++r) to[r * row + i] = dot(queries + r * c.Dk, x, c.Dk);
}

// What the read-out makes of the logits of m keys or means `x`: see `prepare` and `softmax` in call.h, but for counts.
void adapt(const Call& c, int64_t head, const float* x, int64_t stride, int64_t m, float* logits, int64_t row) {
  if (c.read_out == RAW) return;
  for (int64_t i = 0; i < m; ++i, x += stride) {
    const float length = c.read_out == UNIT ? inverse_norm(x, c.Dk) : square(x, c.Dk) / 2;
    for (int64_t r = 0; r < c.group; ++r) {
      float& logit = logits[r * row + i];
      logit = c.read_out == UNIT ? logit * length : logit - c.beta[head * c.group + r] * length;
    }
  }
}

// out `[group, Dv]` += a row of values `x` under weights `[group]`, `row` numbers apart.
void add_value(const Call& c, const float* weights, int64_t row, const float* x, float* out) {
  for (int64_t r = 0; r < c.group; ++r) add_scaled(weights[r * row], x, c.Dv, out + r * c.Dv);
}

// The token of row b, head `head`, whose place in its open chunk is `c.p`.
void read(const Call& c, int64_t b, int64_t head, Work& w, float* o) {
  const int64_t n = c.size[b * c.size_row + head], own = c.p + 1, row = n + own, g = c.group;
  const float *mu = c.keys.at(b, head), *nu = c.values.at(b, head);
  const float *key = c.pending_k.at(b, 0, head), *value = c.pending_v.at(b, 0, head);
  const int64_t* counts = c.counts + b * c.counts_row + head * c.N;
  float *queries = room(w.queries, g * c.Dk), *scores = room(w.scores, g * row);
  for (int64_t r = 0; r < g; ++r) {
    const float* q = c.q.at(b, 0, head * g + r);
    scale_to(q, c.Dk, (c.query_norm ? inverse_norm(q, c.Dk) : 1.0f) * c.beta[head * g + r], queries + r * c.Dk);
  }
  logits_of(c, queries, mu, c.keys.stride, n, scores, row);
  logits_of(c, queries, key, c.pending_k.token, own, scores + n, row);
  adapt(c, head, mu, c.keys.stride, n, scores, row);
  if (c.read_out == GMR) adapt(c, head, key, c.pending_k.token, own, scores + n, row);
  for (int64_t r = 0; r < g; ++r) {
    float *of_slots = scores + r * row, *of_tokens = of_slots + n, most = -std::numeric_limits<float>::infinity();
    const float bias = c.slot_bias == nullptr ? 0.0f : c.slot_bias[head * g + r];
    for (int64_t j = 0; j < own; ++j)
      if (!c.valid(b, j)) of_tokens[j] = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < n; ++i) of_slots[i] += bias;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < row; ++i) most = of_slots[i] > most ? of_slots[i] : most;
    // A slot counts for its tokens: a factor here, which spares the logarithm of every count.
    exponentials(of_slots, row, most);
    for (int64_t i = 0; i < n; ++i) of_slots[i] *= static_cast<float>(counts[i]);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < row; ++i) sum += of_slots[i];
    scale_to(of_slots, row, 1.0f / sum, of_slots);
  }
  float* out = o + (b * c.G + head) * g * c.Dv;
  std::fill_n(out, g * c.Dv, 0.0f);
  for (int64_t i = 0; i < n; ++i) add_value(c, scores + i, row, nu + i * c.values.stride, out);
  for (int64_t j = 0; j < own; ++j)  // what a masked place holds must not matter, not even if it is NaN
    if (c.valid(b, j)) add_value(c, scores + n + j, row, value + j * c.pending_v.token, out);
}

// Put the token of `[B, 1, ...]` at place `position` of the open chunks `[B, places, G, D]`, its key normalised, and
// return what it reads, `[B, 1, H, Dv]`, and the keys, values and validity of the places up to its own.
//
// `state` are counts, keys, values and sizes of dictionaries and `room` the keys, values and validity of open chunks.
std::vector<at::Tensor> step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                             const std::optional<at::Tensor>& slot_bias, at::TensorList state, at::TensorList room_,
                             int64_t position, at::IntArrayRef sizes) {
  const at::Tensor tensors[] = {state[0], state[1], state[2], state[3], room_[0], room_[1], room_[2]};
  const double none[] = {0.0, 0.0};
  Call c = call_of(q, k, v, beta, slot_bias, std::nullopt, tensors, sizes, none);
  c.p = position;
  at::Tensor o = at::empty({c.B, 1, c.G * c.group, c.Dv}, q.options());
  float *keys = room_[0].data_ptr<float>(), *values = room_[1].data_ptr<float>(), *to = o.data_ptr<float>();
  bool* mask = room_[2].data_ptr<bool>();
  at::parallel_for(0, c.B * c.G, grain(c), [&](int64_t begin, int64_t end) {
    Work w;
    for (int64_t line = begin; line < end; ++line) {
      const int64_t b = line / c.G, head = line % c.G;
      const float* key = c.k.at(b, 0, head);
      const int64_t at_k = c.pending_k.at(b, position, head) - c.pending_k.data;
      const int64_t at_v = c.pending_v.at(b, position, head) - c.pending_v.data;
      scale_to(key, c.Dk, inverse_norm(key, c.Dk), keys + at_k);
      std::copy_n(c.v.at(b, 0, head), c.Dv, values + at_v);
      if (head == 0) mask[b * c.pending_mask_row + position * c.pending_mask_token] = true;
    }
  });
  at::parallel_for(0, c.B * c.G, grain(c), [&](int64_t begin, int64_t end) {
    Work w;
    for (int64_t line = begin; line < end; ++line) read(c, line / c.G, line % c.G, w, to);
  });
  const int64_t stop = position + 1;
  return {o, room_[0].narrow(1, 0, stop), room_[1].narrow(1, 0, stop), room_[2].narrow(1, 0, stop)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ovq_native, library) {
  library.def(
      "step(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? slot_bias, Tensor[] state, Tensor[] room, int position, "
      "int[] sizes) -> Tensor[]",
      &step);
}
