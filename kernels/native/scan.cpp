// The scan along the chunks of OVQ attention on a CPU: read, then update, a thread for each batch head.
//
// The same steps as in kernels/scan.py, selection.py and writing.py, whose words this uses: a batch head is a row and a
// key/value head; B rows, T new tokens, p pending ones before them, H query heads, G key/value heads, g = H / G, L
// chunk, N capacity, n slots in use, Dk and Dv sizes, D = Dk + Dv. Everything is fp32, row after row.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "arithmetic.h"

namespace {

constexpr int64_t TILE = 128;  // queries, or tokens, compared with all slots at a time: their scores stay in a cache
constexpr int64_t WORTH_THREADS = 1 << 18;  // scores of a call for which starting threads pays

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
  const int64_t *counts, *size, *targets;
  int64_t counts_row, size_row;
  int64_t B, T, p, G, group, Dk, Dv, N, L, full_chunks;
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

// Where a call's results go; `slots` and `snapshots` are null where no gradient will be asked for.
struct Results {
  float *o, *means, *snapshots;
  int64_t *counts, *size;
  int32_t* slots;
  int64_t every;  // chunks between snapshots
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
};

float* room(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// The tokens of positions start to stop as normalised keys beside values; zero where masked.
void load_tokens(const Call& c, int64_t b, int64_t head, int64_t start, int64_t stop, Work& w) {
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

// What the read-out adds to the logits of slots, and the means as it uses them.
Seen prepare(const Call& c, const int64_t* counts, Seen seen, Work& w) {
  float* log_count = room(w.log_count, seen.n);
  for (int64_t i = 0; i < seen.n; ++i) log_count[i] = std::log(static_cast<float>(counts[i]));
  if (c.read_out == GMR) {
    float* half = room(w.half, seen.n);
    for (int64_t i = 0; i < seen.n; ++i) half[i] = square(seen.mu + i * seen.mu_stride, c.Dk) / 2;
  } else if (c.read_out == UNIT) {
    float* unit = room(w.unit, seen.n * c.Dk);
    for (int64_t i = 0; i < seen.n; ++i) {
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
float softmax(const Call& c, float* scores, int64_t n, int64_t own, int64_t seen, float beta, float bias, Work& w) {
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

// Outputs of the new tokens among positions start to stop, which `load_tokens` loaded.
void read(const Call& c, int64_t b, int64_t head, int64_t start, int64_t stop, const Seen& seen, Work& w, float* o) {
  const int64_t first = std::max(start, c.p), g = c.group, D = c.D(), n = seen.n, m = stop - start;
  if (first >= stop) return;
  if (c.read_out == GMR) {
    float* own_half = room(w.own_half, m);
    for (int64_t j = 0; j < m; ++j) own_half[j] = square(w.kv.data() + j * D, c.Dk) / 2;
  }
  // A later token's weight is zero, but zero times NaN is not: then a query reads for itself what it may see.
  const int64_t step = w.finite ? std::max<int64_t>(1, TILE / g) : 1, stride = n + m;
  for (int64_t begin = first; begin < stop; begin += step) {
    const int64_t end = std::min(begin + step, stop), rows = (end - begin) * g, own = end - start;
    float* queries = room(w.queries, rows * c.Dk);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t h = head * g + r % g;
      const float* q = c.q.at(b, begin + r / g - c.p, h);
      const float inverse = c.query_norm ? inverse_norm(q, c.Dk) : 1.0f;
      scale_to(q, c.Dk, inverse * c.beta[h], queries + r * c.Dk);
    }
    float* scores = room(w.scores, rows * stride);
    product_nt(rows, n, c.Dk, queries, c.Dk, seen.mu, seen.mu_stride, scores, stride);
    product_nt(rows, own, c.Dk, queries, c.Dk, w.kv.data(), D, scores + n, stride);
    float* inverse_sum = room(w.sums, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = begin + r / g - start, h = head * g + r % g;
      float* row = scores + r * stride;
      if (w.is_valid[i]) {
        const float bias = c.slot_bias == nullptr ? 0.0f : c.slot_bias[h];
        inverse_sum[r] = softmax(c, row, n, i + 1, own, c.beta[h], bias, w);
      } else {
        std::fill(row, row + n + own, 0.0f);
        inverse_sum[r] = 0.0f;
      }
    }
    float* out = room(w.out, rows * c.Dv);
    product(rows, c.Dv, n, scores, stride, seen.nu, seen.nu_stride, 0.0f, out, c.Dv);
    product(rows, c.Dv, own, scores + n, stride, w.kv.data() + c.Dk, D, 1.0f, out, c.Dv);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = begin + r / g, h = head * g + r % g;
      float* to = o + ((b * c.T + i - c.p) * c.G * g + h) * c.Dv;
      if (w.is_valid[i - start])
        scale_to(out + r * c.Dv, c.Dv, inverse_sum[r], to);
      else
        std::fill(to, to + c.Dv, 0.0f);
    }
  }
}

// Similarity of `m` tokens to their most similar slot, and the lowest slot that has it; NaN counts as minus infinity.
void best_match(const Call& c, const float* x, int64_t stride, int64_t m, const float* mu, int64_t mu_stride,
                int64_t n, float* similarity, int64_t* nearest, Work& w) {
  for (int64_t begin = 0; begin < m; begin += TILE) {
    const int64_t rows = std::min(TILE, m - begin);
    float* scores = room(w.scores, rows * n);
    product_nt(rows, n, c.Dk, x + begin * stride, stride, mu, mu_stride, scores, n);
    for (int64_t r = 0; r < rows; ++r) first_max(scores + r * n, n, similarity + begin + r, nearest + begin + r);
  }
}

// Write the tokens that `load_tokens` loaded into means `[N, D]` and counts `[N]`; returns the slots then in use.
//
// Args: target, the size that the growth schedule asks for; codes, `[m]`, of each token -1 if masked, its slot, or -2 -
// slot if it seeds that; null if not wanted.
int64_t update(const Call& c, int64_t m, int64_t target, float* means, int64_t* counts, int64_t size, int32_t* codes,
               Work& w) {
  const int64_t D = c.D();
  w.valid.clear();
  for (int64_t i = 0; i < m; ++i)
    if (w.is_valid[i]) w.valid.push_back(i);
  if (codes != nullptr) std::fill(codes, codes + m, -1);
  const int64_t arrived = static_cast<int64_t>(w.valid.size());
  if (arrived == 0) return size;
  const float* x = w.kv.data();  // tokens, one after the other
  if (arrived < m) {
    float* packed = room(w.packed, arrived * D);
    for (int64_t j = 0; j < arrived; ++j) std::copy_n(w.kv.data() + w.valid[j] * D, D, packed + j * D);
    x = packed;
  }
  int64_t wanted = std::min(std::max<int64_t>(target - size, 0), arrived), old = size;
  w.similarity.resize(arrived);
  w.nearest.assign(arrived, 0);
  w.is_seed.assign(arrived, 0);
  float* similarity = w.similarity.data();
  if (size == 0) {  // the first token becomes slot 0 and counts as old
    product_nt(arrived, 1, c.Dk, x, D, x, D, similarity, 1);
    for (int64_t j = 0; j < arrived; ++j)
      if (std::isnan(similarity[j])) similarity[j] = -std::numeric_limits<float>::infinity();
    w.is_seed[0] = 1;
    old = 1;
    wanted -= 1;
  } else {
    best_match(c, x, D, arrived, means, D, size, similarity, w.nearest.data(), w);
  }

  // Seeds: the candidates that are least like any old slot, the earlier first where two are alike.
  w.order.clear();
  for (int64_t j = 0; j < arrived; ++j)
    if (!w.is_seed[j] && similarity[j] < c.threshold) w.order.push_back(j);
  wanted = std::min<int64_t>(wanted, w.order.size());
  std::partial_sort(w.order.begin(), w.order.begin() + wanted, w.order.end(), [&](int64_t i, int64_t j) {
    return similarity[i] < similarity[j] || (similarity[i] == similarity[j] && i < j);
  });
  w.seeds.assign(w.order.begin(), w.order.begin() + wanted);
  std::sort(w.seeds.begin(), w.seeds.end());
  if (c.join_seeds && wanted > 0) {
    float* seed_keys = room(w.unit, wanted * c.Dk + arrived);
    float* to_seed = seed_keys + wanted * c.Dk;
    for (int64_t i = 0; i < wanted; ++i) std::copy_n(x + w.seeds[i] * D, c.Dk, seed_keys + i * c.Dk);
    w.taken.resize(arrived);
    best_match(c, x, D, arrived, seed_keys, c.Dk, wanted, to_seed, w.taken.data(), w);
    for (int64_t j = 0; j < arrived; ++j)
      if (to_seed[j] > similarity[j]) w.nearest[j] = old + w.taken[j];
  }
  for (int64_t j : w.seeds) w.is_seed[j] = 1;
  int64_t next = size;
  for (int64_t j = 0; j < arrived; ++j)
    if (w.is_seed[j]) w.nearest[j] = next++;  // new slots in order of position

  // Statistics: the change of each slot is summed, so that a slot without tokens keeps its bits.
  w.taken.assign(next, 0);  // tokens of a slot that do not seed it
  for (int64_t j = 0; j < arrived; ++j) {
    ++counts[w.nearest[j]];
    if (!w.is_seed[j]) ++w.taken[w.nearest[j]];
  }
  float* change = room(w.scores, arrived * D);
  for (int64_t j = 0; j < arrived; ++j) {
    const int64_t slot = w.nearest[j];
    float share = 1.0f / static_cast<float>(counts[slot]);
    if (c.learning_rate != ADAPTIVE) {
      const float members = static_cast<float>(w.taken[slot]);
      float rate = 1.0f - std::pow(static_cast<float>(1.0 - c.rate), members);
      if (c.learning_rate == FLOORED) rate = std::max(rate, members / static_cast<float>(counts[slot]));
      share = w.is_seed[j] ? 1.0f - rate : rate / std::max(members, 1.0f);
    }
    const float *token = x + j * D, *mean = means + slot * D;
    float* to = change + j * D;
    for (int64_t d = 0; d < D; ++d) to[d] = share * (token[d] - mean[d]);
    if (codes != nullptr) codes[w.valid[j]] = static_cast<int32_t>(w.is_seed[j] ? -2 - slot : slot);
  }
  for (int64_t j = 0; j < arrived; ++j) {
    float* mean = means + w.nearest[j] * D;
    for (int64_t d = 0; d < D; ++d) mean[d] += change[j * D + d];
  }
  return next;
}

// All chunks of a batch head.
void scan(const Call& c, int64_t b, int64_t head, Work& w, const Results& r) {
  const int64_t D = c.D(), line = b * c.G + head, positions = c.p + c.T, lines = c.B * c.G;
  const int64_t chunks = (positions + c.L - 1) / c.L;
  int64_t size = c.size[b * c.size_row + head];
  const int64_t* counts = c.counts + b * c.counts_row + head * c.N;
  Seen seen{c.keys.at(b, head), c.values.at(b, head), c.keys.stride, c.values.stride, size};
  float* means = nullptr;
  int64_t* counted = nullptr;
  if (c.full_chunks > 0) {  // a copy, which updates change
    means = r.means + line * c.N * D;
    counted = r.counts + line * c.N;
    std::copy_n(counts, c.N, counted);
    for (int64_t i = 0; i < size; ++i) {
      std::copy_n(seen.mu + i * seen.mu_stride, c.Dk, means + i * D);
      std::copy_n(seen.nu + i * seen.nu_stride, c.Dv, means + i * D + c.Dk);
    }
    counts = counted;
    seen = {means, means + c.Dk, D, D, size};
  }
  for (int64_t index = 0; index < chunks; ++index) {
    const int64_t start = index * c.L, stop = std::min(start + c.L, positions);
    if (r.snapshots != nullptr && index > 0 && index % r.every == 0)
      std::copy_n(means, size * D, r.snapshots + ((index / r.every - 1) * lines + line) * c.N * D);
    load_tokens(c, b, head, start, stop, w);
    seen.n = size;
    if (stop > c.p) read(c, b, head, start, stop, prepare(c, counts, seen, w), w, r.o);
    if (index < c.full_chunks) {
      int32_t* codes = r.slots == nullptr ? nullptr : r.slots + line * c.full_chunks * c.L + start;
      size = update(c, stop - start, c.targets[b * c.full_chunks + index], means, counted, size, codes, w);
    }
  }
  if (c.full_chunks > 0) r.size[line] = size;
}

void forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
             const std::optional<at::Tensor>& slot_bias, const std::optional<at::Tensor>& mask,
             at::TensorList state, const at::Tensor& targets, at::TensorList results, at::IntArrayRef sizes,
             at::ArrayRef<double> numbers) {
  const at::Tensor &counts = state[0], &keys = state[1], &values = state[2], &size = state[3], &pending_k = state[4],
                   &pending_v = state[5], &pending_mask = state[6];
  const bool differentiate = results[4].numel() > 0;
  Call c{Tokens(q), Tokens(k), Tokens(v), Tokens(pending_k), Tokens(pending_v), Slots(keys), Slots(values),
         beta.data_ptr<float>(),
         slot_bias ? slot_bias->data_ptr<float>() : nullptr,
         mask ? mask->data_ptr<bool>() : nullptr,
         pending_mask.data_ptr<bool>(),
         mask ? mask->stride(0) : 0, mask ? mask->stride(1) : 0, pending_mask.stride(0), pending_mask.stride(1),
         counts.data_ptr<int64_t>(), size.data_ptr<int64_t>(), targets.data_ptr<int64_t>(),
         counts.size(0) == 1 ? 0 : counts.stride(0), size.size(0) == 1 ? 0 : size.stride(0),
         q.size(0), q.size(1), pending_k.size(1), k.size(2), q.size(2) / k.size(2), q.size(3), v.size(3),
         counts.size(2), /*L=*/sizes[0], /*full_chunks=*/sizes[1], /*read_out=*/sizes[2], /*learning_rate=*/sizes[3],
         /*rate=*/numbers[0], /*threshold=*/numbers[1], /*join_seeds=*/sizes[4] != 0, /*query_norm=*/sizes[5] != 0};
  Results r{results[0].data_ptr<float>(), results[1].data_ptr<float>(),
            results[5].numel() > 0 ? results[5].data_ptr<float>() : nullptr,
            results[2].data_ptr<int64_t>(), results[3].data_ptr<int64_t>(),
            differentiate ? results[4].data_ptr<int32_t>() : nullptr, /*every=*/sizes[6]};
  const int64_t lines = c.B * c.G, scores = std::max<int64_t>(1, c.T * c.group * (c.N + c.L));
  at::parallel_for(0, lines, std::max<int64_t>(1, WORTH_THREADS / scores), [&](int64_t begin, int64_t end) {
    OneThread products;  // a product of one chunk is too small to share
    Work w;
    for (int64_t line = begin; line < end; ++line) scan(c, line / c.G, line % c.G, w, r);
  });
}

}  // namespace

TORCH_LIBRARY(ovq_native, library) {
  library.def(
      "forward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? slot_bias, Tensor? mask, Tensor[] state, "
      "Tensor targets, Tensor[] results, int[] sizes, float[] numbers) -> ()",
      &forward);
}
