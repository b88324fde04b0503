// What a CUDA kernel takes for granted, for a host's C++ compiler: words, thread numbers, intrinsics, conversions.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3
{
    unsigned x, y, z;
};

static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

template <typename To, typename From>
To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

inline float half_to_float(unsigned short half)
{
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    float value = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
    if (exponent == 31) value = fraction ? NAN : INFINITY;
    return half & 0x8000 ? -value : value;
}

// To the nearest, ties to even: nearbyint rounds so, at the place where the result's last bit stands.
inline unsigned short float_to_half(float value)
{
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return 0x7fff;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | (unsigned short)std::nearbyint(size * 0x1p24f);
    int exponent;
    const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
    return sign | (unsigned short)(((exponent + 13) << 10) + (int)std::nearbyint(fraction * 2048.0f));
}

inline unsigned short float_to_bfloat(float value)
{
    if (std::isnan(value)) return 0x7fff;
    const unsigned bits = __float_as_uint(value);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

namespace on_host {

template <typename... Arguments, std::size_t... Number>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Number...>)
{
    kernel(*static_cast<Arguments*>(arguments[Number])...);
}

template <typename... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned* grid, const unsigned* block, void** arguments)
{
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; ++threadIdx.z)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
                        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
                            call(kernel, arguments, std::index_sequence_for<Arguments...>{});
}

}  // namespace on_host
