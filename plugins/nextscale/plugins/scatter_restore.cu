// ScatterRestore: result = residual + (the resized cache, overwritten at index by kept). See signature.py for shapes.
//
// Written once for all dtypes: PART (of kept and cache) and FULL (of residual and result) are each Float32, Float16 or
// BFloat16, given as macros, so that an engine carries one small kernel. It includes nothing: NVRTC compiles it as it
// is, and so does a host's C++ compiler that is told what __global__ and threadIdx are.
//
// What bounds it is memory: a token costs reading its residual and writing its result (2 C values), and for a kept one
// reading its own update. The cache is smaller than the L2 cache and is read from there. So:
// - One warp makes one token. Where it comes from (a binary search in index, about 10 cached reads) and its weights
//   (a scan of one row of each matrix) cost each lane a few hundred instructions once, for C / 32 values.
// - All lanes of a warp agree on every branch, and their accesses are contiguous: 16 bytes a lane for the wider dtype
//   and as many values of the narrower one, so that no 32-byte sector is written in two halves.
// - Many warps wait side by side rather than one lane for many accesses: 40 warps of an SM with BATCH accesses each have
//   40 KB in flight, where an H200 needs about 30 (4.8 TB/s for some 0.8 us on 132 SMs) and smaller GPUs less.
// - Nothing is exchanged between threads, so there is no barrier, no shared memory, no scratch and no atomic operation,
//   and a host that runs them one after the other computes the same.

#ifndef PART
#define PART Float32
#endif
#ifndef FULL
#define FULL Float32
#endif

constexpr int LANES = 32;  // blockDim.x: the threads of one token
constexpr int TOKENS = 8;  // blockDim.y: tokens of a block
constexpr int BATCH = 2;   // accesses that a lane starts before it waits for one
constexpr int BLOCKS = 5;  // of an SM at once, which leaves 48 registers a thread

#if defined(__CUDACC__)
__device__ __forceinline__ float half_to_float(unsigned short half)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value)
{
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ unsigned short float_to_bfloat(float value)
{
    unsigned short half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
#endif

struct Float32
{
    using Bits = float;
    static __device__ __forceinline__ float read(Bits bits) { return bits; }
    static __device__ __forceinline__ Bits write(float value) { return value; }
};

struct Float16
{
    using Bits = unsigned short;
    static __device__ __forceinline__ float read(Bits bits) { return half_to_float(bits); }
    static __device__ __forceinline__ Bits write(float value) { return float_to_half(value); }
};

struct BFloat16
{
    using Bits = unsigned short;
    static __device__ __forceinline__ float read(Bits bits) { return __uint_as_float((unsigned)bits << 16); }
    static __device__ __forceinline__ Bits write(float value) { return float_to_bfloat(value); }
};

using Part = PART::Bits;
using Full = FULL::Bits;
constexpr int WIDEST = sizeof(Part) > sizeof(Full) ? sizeof(Part) : sizeof(Full);

// N neighbours that move in one access.
template <typename Bits, int N>
struct alignas(sizeof(Bits) * N) Group
{
    Bits item[N];
};

// One output line's weights along one axis. Those outside of first..end are zero: an area weight's few are neighbours,
// and of any other matrix the zeros within are passed over.
struct Taps
{
    const float* weight;
    int first, end;
};

__device__ __forceinline__ Taps taps_of(const float* weight, int count)
{
    Taps taps = {weight, count, 0};
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
        if (weight[k] != 0.0f) {
            taps.first = k < taps.first ? k : taps.first;
            taps.end = k + 1;
        }
    }
    return taps;
}

// Where token stands in an ascending index, or -1.
__device__ __forceinline__ int position_of(int token, const int* index, int count)
{
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (index[middle] < token) low = middle + 1;
        else high = middle;
    }
    return low < count && index[low] == token ? low : -1;
}

// sum += weight * values, for a lane's BATCH groups from start on.
template <int N>
__device__ __forceinline__ void add(
    float (&sum)[BATCH][N], float weight, const Part* __restrict__ values, int start, int width)
{
    Group<Part, N> group[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        const int at = start + b * LANES * N;
        if (at < width) group[b] = *reinterpret_cast<const Group<Part, N>*>(values + at);
    }
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
        if (start + b * LANES * N >= width) continue;
#pragma unroll
        for (int i = 0; i < N; ++i) sum[b][i] += weight * PART::read(group[b].item[i]);
    }
}

// One token, N values an access; own is its own update, or null where it is restored from the cache (hc, wc, width).
template <int N>
__device__ __forceinline__ void restore(
    const Part* __restrict__ own, const Part* __restrict__ cache, Taps rows, Taps columns, int wc, int width,
    const Full* __restrict__ residual, Full* __restrict__ result)
{
    for (int start = threadIdx.x * N; start < width; start += LANES * N * BATCH) {
        Group<Full, N> stream[BATCH];
        float sum[BATCH][N] = {};
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int at = start + b * LANES * N;
            if (at < width) stream[b] = *reinterpret_cast<const Group<Full, N>*>(residual + at);
        }
        if (own) {
            add<N>(sum, 1.0f, own, start, width);
        } else {
#pragma unroll 1
            for (int y = rows.first; y < rows.end; ++y) {
#pragma unroll 1
                for (int x = columns.first; x < columns.end; ++x) {
                    const float weight = rows.weight[y] * columns.weight[x];
                    if (weight != 0.0f) add<N>(sum, weight, cache + (long long)(y * wc + x) * width, start, width);
                }
            }
        }
#pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int at = start + b * LANES * N;
            if (at >= width) continue;
#pragma unroll
            for (int i = 0; i < N; ++i) stream[b].item[i] = FULL::write(FULL::read(stream[b].item[i]) + sum[b][i]);
            *reinterpret_cast<Group<Full, N>*>(result + at) = stream[b];
        }
    }
}

// Inputs, then scalars, then the output: the order in which TensorRT passes them. Grid: ceil(rows * h * w / TOKENS).
extern "C" __global__ void __launch_bounds__(LANES* TOKENS, BLOCKS) scatter_restore(
    const Part* __restrict__ kept, const int* __restrict__ index, const Part* __restrict__ cache,
    const Full* __restrict__ residual, const float* __restrict__ row_matrix, const float* __restrict__ column_matrix,
    int rows, int kept_tokens, int width, int h, int hc, int w, int wc, Full* __restrict__ result)
{
    const int number = blockIdx.x * TOKENS + threadIdx.y;
    if (number >= rows * h * w) return;
    const int row = number / (h * w), token = number % (h * w);

    const int position = position_of(token, index + (long long)row * kept_tokens, kept_tokens);
    const Part* own = nullptr;
    Taps down = {row_matrix, 0, 0}, across = {column_matrix, 0, 0};
    if (position >= 0) {
        own = kept + ((long long)row * kept_tokens + position) * width;
    } else {
        down = taps_of(row_matrix + token / w * hc, hc);
        across = taps_of(column_matrix + token % w * wc, wc);
    }
    cache += (long long)row * hc * wc * width;
    residual += (long long)number * width;
    result += (long long)number * width;

    constexpr int WIDE = 16 / WIDEST;
    const size_t addresses = (size_t)own | (size_t)cache | (size_t)residual | (size_t)result;
    if (width % WIDE == 0 && addresses % 16 == 0) restore<WIDE>(own, cache, down, across, wc, width, residual, result);
    else restore<1>(own, cache, down, across, wc, width, residual, result);
}
