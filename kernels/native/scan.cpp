// The scan along the chunks of OVQ attention: read, then update, a thread for each batch head.
//
// The same steps as in kernels/scan.py, selection.py and writing.py, whose words this uses.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <limits>

#include "call.h"

namespace {

// Where a call's results go; `slots` and `snapshots` are null where no gradient will be asked for.
struct Results {
  float *o, *means, *snapshots;
  int64_t *counts, *size;
  const int64_t* targets;  // `[B, full_chunks]`, sizes that the growth schedule asks for
  int32_t* slots;
};

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
    const float share = share_of(c, w.is_seed[j], w.taken[slot], counts[slot]);
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
    if (r.snapshots != nullptr && index > 0 && index % c.every == 0)
      std::copy_n(means, size * D, r.snapshots + ((index / c.every - 1) * lines + line) * c.N * D);
    load_tokens(c, b, head, start, stop, w);
    seen.n = size;
    if (stop > c.p && c.group > 0) read(c, b, head, start, stop, prepare(c, counts, seen, w), w, r.o);
    if (index < c.full_chunks) {
      int32_t* codes = r.slots == nullptr ? nullptr : r.slots + line * c.full_chunks * c.L + start;
      size = update(c, stop - start, r.targets[b * c.full_chunks + index], means, counted, size, codes, w);
    }
  }
  if (c.full_chunks > 0) r.size[line] = size;
}

void forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
             const std::optional<at::Tensor>& slot_bias, const std::optional<at::Tensor>& mask,
             at::TensorList state, at::IntArrayRef sizes, at::ArrayRef<double> numbers, const at::Tensor& targets,
             at::TensorList results) {
  const Call c = call_of(q, k, v, beta, slot_bias, mask, state, sizes, numbers);
  const at::Tensor &slots = results[4], &snapshots = results[5];
  const Results r{results[0].data_ptr<float>(),
                  results[1].data_ptr<float>(),
                  snapshots.numel() > 0 ? snapshots.data_ptr<float>() : nullptr,
                  results[2].data_ptr<int64_t>(),
                  results[3].data_ptr<int64_t>(),
                  targets.data_ptr<int64_t>(),
                  slots.numel() > 0 ? slots.data_ptr<int32_t>() : nullptr};
  at::parallel_for(0, c.B * c.G, grain(c), [&](int64_t begin, int64_t end) {
    OneThread products;  // a product of one chunk is too small to share
    Work w;
    for (int64_t i = begin; i < end; ++i) scan(c, i % c.B, i / c.B, w, r);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ovq_native, library) {
  library.def(
      "forward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? slot_bias, Tensor? mask, Tensor[] state, int[] sizes, "
      "float[] numbers, Tensor targets, Tensor[] results) -> ()",
      &forward);
}
