// Products and loops over features that the compiler turns into vector instructions.

#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

extern "C" {
// PyTorch's own; row-major products are those of the transposes.
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
}

// While it lives, products that this thread asks for are not shared with others.
struct OneThread {
  int before = 0;
  OneThread() {
    if (MKL_Set_Num_Threads_Local != nullptr) before = MKL_Set_Num_Threads_Local(1);
  }
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(before);
  }
};

// C [m, n] = A [m, k] B [n, k]^T; strides are those of rows.
inline void product_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b,
                       int64_t b_stride, float* c, int64_t c_stride) {
  if (m == 0 || n == 0) return;
  const int rows = n, columns = m, inner = k, lda = b_stride, ldb = a_stride, ldc = c_stride;
  const float one = 1.0f, zero = 0.0f;
  sgemm_("T", "N", &rows, &columns, &inner, &one, b, &lda, a, &ldb, &zero, c, &ldc);
}

// C [m, n] = A [m, k] B [k, n] + beta C.
inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b,
                    int64_t b_stride, float beta, float* c, int64_t c_stride) {
  if (m == 0 || n == 0) return;
  const int rows = n, columns = m, inner = k, lda = b_stride, ldb = a_stride > 0 ? a_stride : 1, ldc = c_stride;
  const float one = 1.0f;
  sgemm_("N", "N", &rows, &columns, &inner, &one, b, &lda, a, &ldb, &beta, c, &ldc);
}

// C [m, n] += A [k, m]^T B [k, n].
inline void add_product_tn(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride, const float* b,
                           int64_t b_stride, float* c, int64_t c_stride) {
  if (m == 0 || n == 0 || k == 0) return;
  const int rows = n, columns = m, inner = k, lda = b_stride, ldb = a_stride, ldc = c_stride;
  const float one = 1.0f;
  sgemm_("N", "T", &rows, &columns, &inner, &one, b, &lda, a, &ldb, &one, c, &ldc);
}

inline float dot(const float* x, const float* y, int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// y += factor x
inline void add_scaled(float factor, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

inline float square(const float* x, int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

// 1 / |x|; zero for vectors shorter than the smallest normal number, see numerics.py.
inline float inverse_norm(const float* x, int64_t n) {
  constexpr double tiny = std::numeric_limits<float>::min();
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum <= tiny * tiny ? 0.0f : static_cast<float>(1.0 / std::sqrt(sum));
}

inline void scale_to(const float* x, int64_t n, float factor, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = factor * x[i];
}

inline bool all_finite(const float* x, int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] - x[i];  // zero, or NaN
  return sum == 0.0f;
}

// e^x of x <= 0 within 2 units in the last place, zero below -87; NaN stays NaN. Branchless, unlike the library's.
inline float exponential(float x) {
  const float steps = std::nearbyint(x * 1.44269504f);
  const float whole = steps > -126.0f ? steps : -126.0f;  // NaN too
  float r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union {
    int32_t bits;
    float power;
  } two;
  two.bits = (static_cast<int32_t>(whole) + 127) << 23;
  return x < -87.0f ? 0.0f : p * two.power;
}

// x = e^(x - most); returns their sum.
inline float exponentials(float* x, int64_t n, float most) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exponential(x[i] - most);
    sum += x[i];
  }
  return sum;
}

// The largest of n > 0 numbers and where it first stands; NaN counts as minus infinity.
inline void first_max(const float* x, int64_t n, float* largest, int64_t* index) {
  float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  *largest = most;
  *index = 0;
  constexpr int64_t GROUP = 64;
  for (int64_t start = 0; start < n; start += GROUP) {
    const int64_t stop = start + GROUP < n ? start + GROUP : n;
    int found = 0;
    for (int64_t i = start; i < stop; ++i) found |= x[i] == most;
    if (!found) continue;
    while (x[start] != most) ++start;
    *index = start;
    return;
  }
}
