// What runs between the graphs of a chain: uniform noise, and a look for numbers that are none. Both read and write
// memory once, exchange nothing between threads and include nothing, so NVRTC and a host's C++ compiler take them alike.
// Grids: x over an image's values, y over images (arrays are contiguous, images first).

using Word = unsigned long long;  // 64 bits

struct alignas(16) Four
{
    float value[4];
};

// Ten rounds of Philox4x64 (Salmon et al. 2011) in place.
__device__ __forceinline__ void philox4x64_10(Word (&c)[4], Word seed, Word image)
{
    const Word first = 0xD2E7470EE14C6C93ull, second = 0xCA5A826395121157ull;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const Word left_high = __umul64hi(first, c[0]), left_low = first * c[0];
        const Word right_high = __umul64hi(second, c[2]), right_low = second * c[2];
        c[0] = right_high ^ c[1] ^ seed;
        c[1] = right_low;
        c[2] = left_high ^ c[3] ^ image;
        c[3] = left_low;
        seed += 0x9E3779B97F4A7C15ull;
        image += 0xBB67AE8584CAA73Bull;
    }
}

// ((x >> 9) + 0.5) * 2**-23: exact in float32 (23 bits and a half), never 0 or 1.
__device__ __forceinline__ float uniform_of(unsigned bits)
{
    return ((float)(bits >> 9) + 0.5f) * 0x1p-23f;
}

// out (images, count) by the rule of noise.py. keys (images, 2) are read here and not passed, so that a captured launch
// draws for other seeds when they have changed. A thread makes one block of Philox: eight uniforms.
extern "C" __global__ void uniforms(
    const Word* __restrict__ keys, Word step, Word stream, long long count, float* __restrict__ out)
{
    const long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x, start = 8 * block;
    if (start >= count) return;
    const int image = blockIdx.y;

    Word words[4] = {(Word)block, step, stream, 0};
    philox4x64_10(words, keys[2 * image], keys[2 * image + 1]);
    Four half[2];
#pragma unroll
    for (int i = 0; i < 8; ++i) half[i / 4].value[i % 4] = uniform_of((unsigned)(words[i / 2] >> 32 * (i % 2)));

    float* place = out + image * count + start;
    if (start + 8 <= count && (size_t)place % 16 == 0) {
        reinterpret_cast<Four*>(place)[0] = half[0];
        reinterpret_cast<Four*>(place)[1] = half[1];
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (start + i < count) place[i] = half[i / 4].value[i % 4];
        }
    }
}

__device__ __forceinline__ bool is_finite(float value)
{
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// flags (images) is set to 1 where values (images, count) hold NaN or infinity, and left alone elsewhere. All who write
// write the same word, so none has to be first. Threads stride over 16 bytes at a time, and value by value at the ends.
extern "C" __global__ void flag_nonfinite(const float* __restrict__ values, long long count, int* __restrict__ flags)
{
    const long long stride = (long long)gridDim.x * blockDim.x;
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    values += blockIdx.y * count;

    long long before = (16 - (size_t)values % 16) % 16 / 4;  // values ahead of the first whole 16 bytes
    if (before > count) before = count;
    const long long fours = (count - before) / 4, after = before + 4 * fours;
    const Four* aligned = reinterpret_cast<const Four*>(values + before);

    bool finite = true;
    for (long long i = first; i < fours; i += stride) {
        const Four four = aligned[i];
        finite &= is_finite(four.value[0]) & is_finite(four.value[1]) & is_finite(four.value[2])
            & is_finite(four.value[3]);  // no &&: all four are read in one access
    }
    if (first < before) finite &= is_finite(values[first]);
    if (first < count - after) finite &= is_finite(values[after + first]);
    if (!finite) flags[blockIdx.y] = 1;
}
