// The scan back along the chunks, which needs every dictionary of the way there. The same steps as in
// kernels/scan_backward.py: dictionaries are made again from snapshots, a segment of chunks at a time, by the slots that
// the way there recorded; then each update is undone by putting back the rows that it overwrote, bit for bit.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "call.h"

namespace {

// Gradients of outputs and last means, what the way there recorded, and where gradients go, all contiguous; null where
// there are none or nobody wants them.
struct Ways {
  const float *d_o, *d_means, *snapshots;
  const int32_t* slots;
  float *q, *k, *v, *beta, *slot_bias, *pending_k, *pending_v, *means;
  bool one_means;  // rows share a dictionary, and add to its gradient
};

// A chunk of a segment: its tokens `kv [m, D]`, and of a full one what its update did.
struct Step {
  std::vector<float> kv, overwritten, share;
  std::vector<char> is_valid;
  bool finite = true;
};

struct Back {
  Work w;
  std::vector<Step> steps;
  std::vector<float> means, d_dictionary, d_kv, d_scores, d_out, d_queries, d_unit, of_logits, inverse, plain;
  std::vector<int64_t> counts, members;
};

// x = gradient of a vector before `unit = x inverse` made it length one, given that of `unit`.
void normalise_backward(const float* unit, float inverse, int64_t n, const float* gradient, float* x) {
  const float along = dot(unit, gradient, n);
  for (int64_t i = 0; i < n; ++i) x[i] = inverse * (gradient[i] - along * unit[i]);
}

// Back through the read of one chunk. Adds to d_dictionary `[n, D]`, unless it is null, and to d_kv `[m, D]`.
void read_backward(const Call& c, const Ways& to, int64_t b, int64_t head, int64_t start, int64_t stop,
                   const Seen& dictionary, const int64_t* counts, float* d_dictionary, Back& back) {
  Work& w = back.w;
  const int64_t first = std::max(start, c.p), g = c.group, D = c.D(), m = stop - start, H = c.G * g;
  if (first >= stop) return;
  const Seen seen = prepare(c, counts, dictionary, w);
  const int64_t n = seen.n, stride = n + m, step = w.finite ? std::max<int64_t>(1, TILE / g) : 1;
  float *kv = w.kv.data(), *d_kv = back.d_kv.data();
  if (c.read_out == GMR) {
    float* own_half = room(w.own_half, m);
    for (int64_t j = 0; j < m; ++j) own_half[j] = square(kv + j * D, c.Dk) / 2;
  }
  float* d_mu = d_dictionary;
  int64_t d_mu_stride = D;
  if (c.read_out == UNIT && d_dictionary != nullptr) {
    d_mu = room(back.d_unit, n * c.Dk);
    d_mu_stride = c.Dk;
    std::fill(d_mu, d_mu + n * c.Dk, 0.0f);
  }
  const bool sums = c.read_out == GMR || c.slot_bias != nullptr;  // over queries, of the gradients of logits
  float* of_logits = room(back.of_logits, sums ? g * stride : 0);
  std::fill(of_logits, of_logits + (sums ? g * stride : 0), 0.0f);
  for (int64_t begin = first; begin < stop; begin += step) {
    const int64_t end = std::min(begin + step, stop), rows = (end - begin) * g, own = end - start;
    float *queries = room(w.queries, rows * c.Dk), *plain = room(back.plain, rows * c.Dk);
    float *inverse = room(back.inverse, rows), *d_out = room(back.d_out, rows * c.Dv);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t h = head * g + r % g, t = begin + r / g - c.p;
      const float* q = c.q.at(b, t, h);
      const bool valid = w.is_valid[begin + r / g - start];
      inverse[r] = c.query_norm ? inverse_norm(q, c.Dk) : 1.0f;
      if (valid) {
        scale_to(q, c.Dk, inverse[r], plain + r * c.Dk);
        std::copy_n(to.d_o + ((b * c.T + t) * H + h) * c.Dv, c.Dv, d_out + r * c.Dv);
      } else {
        inverse[r] = 0.0f;
        std::fill_n(plain + r * c.Dk, c.Dk, 0.0f);
        std::fill_n(d_out + r * c.Dv, c.Dv, 0.0f);
      }
      scale_to(plain + r * c.Dk, c.Dk, c.beta[h], queries + r * c.Dk);
    }
    float *weights = room(w.scores, rows * stride), *d = room(back.d_scores, rows * stride);
    product_nt(rows, n, c.Dk, queries, c.Dk, seen.mu, seen.mu_stride, weights, stride);
    product_nt(rows, own, c.Dk, queries, c.Dk, kv, D, weights + n, stride);
    product_nt(rows, n, c.Dv, d_out, c.Dv, seen.nu, seen.nu_stride, d, stride);
    product_nt(rows, own, c.Dv, d_out, c.Dv, kv + c.Dk, D, d + n, stride);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = begin + r / g - start, h = head * g + r % g;
      float *row = weights + r * stride, *d_row = d + r * stride;
      if (!w.is_valid[i]) {
        std::fill(row, row + n + own, 0.0f);
        std::fill(d_row, d_row + n + own, 0.0f);
        continue;
      }
      const float bias = c.slot_bias == nullptr ? 0.0f : c.slot_bias[h];
      scale_to(row, n + own, softmax(c, row, n, i + 1, own, c.beta[h], bias, w), row);
      const float mean = dot(row, d_row, n + own);
      for (int64_t j = 0; j < n + own; ++j) d_row[j] = row[j] * (d_row[j] - mean);
      if (sums) add_scaled(1.0f, d_row, n + own, of_logits + r % g * stride);
    }
    float* d_queries = room(back.d_queries, rows * c.Dk);
    product(rows, c.Dk, n, d, stride, seen.mu, seen.mu_stride, 0.0f, d_queries, c.Dk);
    product(rows, c.Dk, own, d + n, stride, kv, D, 1.0f, d_queries, c.Dk);
    add_product_tn(own, c.Dk, rows, d + n, stride, queries, c.Dk, d_kv, D);
    add_product_tn(own, c.Dv, rows, weights + n, stride, d_out, c.Dv, d_kv + c.Dk, D);
    if (d_dictionary != nullptr) {
      add_product_tn(n, c.Dk, rows, d, stride, queries, c.Dk, d_mu, d_mu_stride);
      add_product_tn(n, c.Dv, rows, weights, stride, d_out, c.Dv, d_dictionary + c.Dk, D);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t h = head * g + r % g, t = begin + r / g - c.p;
      float *d_q = d_queries + r * c.Dk, *out = to.q + ((b * c.T + t) * H + h) * c.Dk;
      to.beta[b * H + h] += dot(d_q, plain + r * c.Dk, c.Dk);
      scale_to(d_q, c.Dk, c.beta[h], d_q);
      if (c.query_norm)
        normalise_backward(plain + r * c.Dk, inverse[r], c.Dk, d_q, out);
      else
        scale_to(d_q, c.Dk, inverse[r], out);
    }
  }
  for (int64_t member = 0; sums && member < g; ++member) {
    const int64_t h = head * g + member;
    const float *of_slots = of_logits + member * stride, *of_tokens = of_slots + n;
    if (c.slot_bias != nullptr)
      for (int64_t i = 0; i < n; ++i) to.slot_bias[b * H + h] += of_slots[i];
    if (c.read_out != GMR) continue;
    to.beta[b * H + h] -= dot(of_slots, w.half.data(), n) + dot(of_tokens, w.own_half.data(), m);
    for (int64_t j = 0; j < m; ++j) add_scaled(-c.beta[h] * of_tokens[j], kv + j * D, c.Dk, d_kv + j * D);
    for (int64_t i = 0; d_mu != nullptr && i < n; ++i)
      add_scaled(-c.beta[h] * of_slots[i], seen.mu + i * seen.mu_stride, c.Dk, d_mu + i * D);
  }
  if (c.read_out == UNIT && d_dictionary != nullptr) {
    float* d_mean = room(back.d_out, c.Dk);
    for (int64_t i = 0; i < n; ++i) {
      const float* mu = dictionary.mu + i * dictionary.mu_stride;
      normalise_backward(seen.mu + i * c.Dk, inverse_norm(mu, c.Dk), c.Dk, d_mu + i * c.Dk, d_mean);
      add_scaled(1.0f, d_mean, c.Dk, d_dictionary + i * D);
    }
  }
}

// Put d_kv `[m, D]`, the gradient of a chunk's normalised keys and values, where those of the inputs belong.
void store(const Call& c, const Ways& to, int64_t b, int64_t head, int64_t start, int64_t stop, Back& back) {
  const int64_t D = c.D();
  for (int64_t i = 0; i < stop - start; ++i) {
    const int64_t s = start + i;
    float* d = back.d_kv.data() + i * D;
    if (!back.w.is_valid[i]) std::fill(d, d + D, 0.0f);
    if (s < c.p) {
      const int64_t at = (b * c.p + s) * c.G + head;
      std::copy_n(d, c.Dk, to.pending_k + at * c.Dk);
      std::copy_n(d + c.Dk, c.Dv, to.pending_v + at * c.Dv);
      continue;
    }
    const int64_t at = (b * c.T + s - c.p) * c.G + head;
    std::copy_n(d + c.Dk, c.Dv, to.v + at * c.Dv);
    if (back.w.is_valid[i]) {
      const float inverse = inverse_norm(c.k.at(b, s - c.p, head), c.Dk);
      normalise_backward(back.w.kv.data() + i * D, inverse, c.Dk, d, to.k + at * c.Dk);
    } else {
      std::fill_n(to.k + at * c.Dk, c.Dk, 0.0f);
    }
  }
}

int64_t slot_of(int32_t code) { return code < -1 ? -2 - code : code; }

// Make a chunk's update again: bring means `[N, D]` and counts to what they were after it, and fill what undoes it.
void replay(const Call& c, const int32_t* codes, int64_t m, float* means, Back& back, Step& step) {
  const int64_t D = c.D();
  float *share = room(step.share, m), *overwritten = room(step.overwritten, m * D), *change = room(back.w.scores, m * D);
  back.members.assign(c.N, 0);
  for (int64_t j = 0; j < m; ++j) {
    if (codes[j] == -1) continue;
    ++back.counts[slot_of(codes[j])];
    if (codes[j] >= 0) ++back.members[codes[j]];
  }
  for (int64_t j = 0; j < m; ++j) {
    if (codes[j] == -1) continue;
    const int64_t slot = slot_of(codes[j]);
    share[j] = share_of(c, codes[j] < -1, back.members[slot], back.counts[slot]);
    const float *token = step.kv.data() + j * D, *mean = means + slot * D;
    std::copy_n(mean, D, overwritten + j * D);
    for (int64_t d = 0; d < D; ++d) change[j * D + d] = share[j] * (token[d] - mean[d]);
  }
  for (int64_t j = 0; j < m; ++j)
    if (codes[j] != -1) add_scaled(1.0f, change + j * D, D, means + slot_of(codes[j]) * D);
}

// Back through a chunk's update: d_kv is set, d_dictionary becomes the gradient of the means before it; means and counts
// become what they were.
void undo(const Call& c, const int32_t* codes, int64_t m, float* means, float* d_dictionary, Back& back, const Step& step) {
  const int64_t D = c.D();
  back.members.assign(c.N, 0);
  for (int64_t j = 0; j < m; ++j) {
    if (codes[j] == -1) continue;
    scale_to(d_dictionary + slot_of(codes[j]) * D, D, step.share[j], back.d_kv.data() + j * D);
    if (codes[j] >= 0) ++back.members[codes[j]];
  }
  for (int64_t j = 0; j < m; ++j) {  // once for each slot
    if (codes[j] < 0 || back.members[codes[j]] == 0) continue;
    const int64_t slot = codes[j];
    const float kept = 1.0f - rate_of(c, back.members[slot], back.counts[slot]);
    scale_to(d_dictionary + slot * D, D, kept, d_dictionary + slot * D);
    back.members[slot] = 0;
  }
  for (int64_t j = 0; j < m; ++j) {
    if (codes[j] == -1) continue;
    const int64_t slot = slot_of(codes[j]);
    if (codes[j] < -1) std::fill_n(d_dictionary + slot * D, D, 0.0f);  // of the mean before nothing is kept
    std::copy_n(step.overwritten.data() + j * D, D, means + slot * D);
    --back.counts[slot];
  }
}

// All chunks of a batch head.
void scan_back(const Call& c, const Ways& to, int64_t b, int64_t head, Back& back) {
  const int64_t D = c.D(), line = b * c.G + head, lines = c.B * c.G, positions = c.p + c.T;
  const int64_t chunks = (positions + c.L - 1) / c.L;
  const int64_t* counts = c.counts + b * c.counts_row + head * c.N;
  const int64_t size = c.size[b * c.size_row + head];
  Seen seen{c.keys.at(b, head), c.values.at(b, head), c.keys.stride, c.values.stride, size};
  float* d_dictionary = nullptr;
  if (c.full_chunks > 0 || to.means != nullptr) {
    d_dictionary = room(back.d_dictionary, c.N * D);
    if (to.d_means != nullptr)
      std::copy_n(to.d_means + line * c.N * D, c.N * D, d_dictionary);
    else
      std::fill_n(d_dictionary, c.N * D, 0.0f);
  }
  const int32_t* codes = to.slots == nullptr ? nullptr : to.slots + line * c.full_chunks * c.L;
  back.counts.assign(counts, counts + c.N);
  for (int64_t j = 0; j < c.full_chunks * c.L; ++j)
    if (codes[j] != -1) ++back.counts[slot_of(codes[j])];
  if (c.full_chunks > 0)
    for (int64_t i = 0; i < c.N; ++i)
      if (back.counts[i] == 0) std::fill_n(d_dictionary + i * D, D, 0.0f);  // an empty slot's mean decides nothing
  float* means = room(back.means, c.full_chunks > 0 ? c.N * D : 0);
  const int64_t segments = (chunks + c.every - 1) / c.every;
  back.steps.resize(std::min(chunks, c.every));
  for (int64_t segment = segments - 1; segment >= 0; --segment) {
    const int64_t begin = segment * c.every, end = std::min(begin + c.every, chunks);
    const int64_t written = std::min(end, c.full_chunks);  // chunks with updates end here
    for (int64_t j = begin * c.L; j < written * c.L; ++j)
      if (codes[j] != -1) --back.counts[slot_of(codes[j])];
    if (c.full_chunks > 0 && segment == 0) {
      std::fill_n(means, c.N * D, 0.0f);
      for (int64_t i = 0; i < size; ++i) {
        std::copy_n(c.keys.at(b, head) + i * c.keys.stride, c.Dk, means + i * D);
        std::copy_n(c.values.at(b, head) + i * c.values.stride, c.Dv, means + i * D + c.Dk);
      }
    } else if (c.full_chunks > 0) {
      std::copy_n(to.snapshots + ((segment - 1) * lines + line) * c.N * D, c.N * D, means);
    }
    for (int64_t index = begin; index < end; ++index) {
      Step& step = back.steps[index - begin];
      const int64_t start = index * c.L, stop = std::min(start + c.L, positions);
      load_tokens(c, b, head, start, stop, back.w);
      step.kv.assign(back.w.kv.begin(), back.w.kv.begin() + (stop - start) * D);
      step.is_valid = back.w.is_valid;
      step.finite = back.w.finite;
      if (index < c.full_chunks) replay(c, codes + start, stop - start, means, back, step);
    }
    for (int64_t index = end - 1; index >= begin; --index) {
      Step& step = back.steps[index - begin];
      const int64_t start = index * c.L, stop = std::min(start + c.L, positions), m = stop - start;
      std::fill_n(room(back.d_kv, m * D), m * D, 0.0f);
      if (index < c.full_chunks) undo(c, codes + start, m, means, d_dictionary, back, step);
      std::copy_n(step.kv.data(), m * D, room(back.w.kv, m * D));
      back.w.is_valid = step.is_valid;
      back.w.finite = step.finite;
      if (c.full_chunks > 0) {
        int64_t used = 0;
        while (used < c.N && back.counts[used] > 0) ++used;
        seen = {means, means + c.Dk, D, D, used};
        counts = back.counts.data();
      }
      read_backward(c, to, b, head, start, stop, seen, counts, d_dictionary, back);
      store(c, to, b, head, start, stop, back);
    }
  }
  if (to.means == nullptr) return;
  float* out = to.means + (to.one_means ? head : line) * c.N * D;
  for (int64_t i = 0; i < c.N * D; ++i) out[i] += d_dictionary[i];
}

const float* data_or_null(const std::optional<at::Tensor>& x) { return x ? x->data_ptr<float>() : nullptr; }
float* data_or_null(const at::Tensor& x) { return x.numel() > 0 ? x.data_ptr<float>() : nullptr; }

void backward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
              const std::optional<at::Tensor>& slot_bias, const std::optional<at::Tensor>& mask, at::TensorList state,
              at::IntArrayRef sizes, at::ArrayRef<double> numbers, const at::Tensor& slots, const at::Tensor& snapshots,
              const at::Tensor& d_o, const std::optional<at::Tensor>& d_means, at::TensorList gradients) {
  const Call c = call_of(q, k, v, beta, slot_bias, mask, state, sizes, numbers);
  const at::Tensor& means = gradients[7];
  const Ways to{d_o.data_ptr<float>(),
                data_or_null(d_means),
                data_or_null(snapshots),
                slots.numel() > 0 ? slots.data_ptr<int32_t>() : nullptr,
                data_or_null(gradients[0]),
                data_or_null(gradients[1]),
                data_or_null(gradients[2]),
                data_or_null(gradients[3]),
                data_or_null(gradients[4]),
                data_or_null(gradients[5]),
                data_or_null(gradients[6]),
                data_or_null(means),
                means.size(0) == 1 && c.B > 1};
  const int64_t rows = to.one_means ? c.B : 1;  // that one thread must have
  at::parallel_for(0, c.B * c.G / rows, std::max<int64_t>(1, grain(c) / rows), [&](int64_t begin, int64_t end) {
    OneThread products;
    Back back;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t row = 0; row < rows; ++row) scan_back(c, to, to.one_means ? row : i % c.B, to.one_means ? i : i / c.B, back);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ovq_native, library) {
  library.def(
      "backward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? slot_bias, Tensor? mask, Tensor[] state, int[] sizes, "
      "float[] numbers, Tensor slots, Tensor snapshots, Tensor d_o, Tensor? d_means, Tensor[] gradients) -> ()",
      &backward);
}
