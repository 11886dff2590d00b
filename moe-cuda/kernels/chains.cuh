// A block's tile of sums, each one chain of fused steps in order: no sum is split, so that its bits depend on nothing else.
// Threads hold TM x TN sums; a stage of the operands lies in shared memory as f32, the steps outermost.
#pragma once
#include "prelude.cuh"

template <typename T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T v[N];
};

template <int BM_, int BN_, int TM_, int TN_, int BK_> struct Tile {
    static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_, BK = BK_;
    static constexpr int THREADS = (BM / TM) * (BN / TN);
    // Columns of a thread that lie side by side.
    static constexpr int RUN = TN < 4 ? TN : 4;
    // The left operand's BM values of a step, then the right one's BN.
    static constexpr int PITCH = BM + BN;
    typedef float Stage[BK][PITCH];

    // A thread's N values out of B: groups of four, spread so that neighbours read neighbouring banks.
    template <int N, int B> static __device__ __forceinline__ uint32_t place(uint32_t thread, int i) {
        constexpr int W = N < 4 ? N : 4, GROUPS = N / W;
        return i / W * (B / GROUPS) + thread * W + i % W;
    }

    static __device__ __forceinline__ uint32_t row(int i) { return place<TM, BM>(threadIdx.x / (BN / TN), i); }
    static __device__ __forceinline__ uint32_t col(int j) { return place<TN, BN>(threadIdx.x % (BN / TN), j); }

    template <int N, int B>
    static __device__ __forceinline__ void read(float (&out)[N], const float *from, uint32_t thread) {
        constexpr int W = N < 4 ? N : 4;
#pragma unroll
        for (int i = 0; i < N; i += W) {
            Pack<float, W> pack = *(const Pack<float, W> *)(from + place<N, B>(thread, i));
#pragma unroll
            for (int j = 0; j < W; j++) out[i + j] = pack.v[j];
        }
    }

    static __device__ __forceinline__ void multiply(const Stage &stage, float (&sums)[TM][TN]) {
#pragma unroll(TM * TN >= 32 ? 8 : 16)
        for (int k = 0; k < BK; k++) {
            float left[TM], right[TN];
            read<TM, BM>(left, stage[k], threadIdx.x / (BN / TN));
            read<TN, BN>(right, stage[k] + BM, threadIdx.x % (BN / TN));
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sums[i][j] = fused(left[i], right[j], sums[i][j]);
        }
    }
};

// An operand's LEN rows or columns on their way into a stage, eight elements at a time, for a matrix of which the steps are
// the rows or, `TURNED`, the columns. Beyond its bounds stands `pad`.
template <typename T, typename Tile, int LEN, bool TURNED> struct Panel {
    static constexpr int UNITS = LEN * Tile::BK / 8, EACH = (UNITS + Tile::THREADS - 1) / Tile::THREADS;
    const T *matrix;
    uint32_t pitch, first, count; // this panel is first..first+LEN of `count`
    uint32_t steps;
    T pad;
    bool wide; // rows can be read 16 bytes at a time
    Pack<T, 8> held[EACH];

    __device__ __forceinline__ Panel(const void *from, uint32_t pitch, uint32_t first, uint32_t count, uint32_t steps, float pad)
        : matrix((const T *)from), pitch(pitch), first(first), count(count), steps(steps), pad(narrow<T>(pad)),
          wide(pitch % 8 == 0 && (uint64_t)from % 16 == 0) {}

    static __device__ __forceinline__ uint32_t unit(int u) { return threadIdx.x + u * Tile::THREADS; }
    static __device__ __forceinline__ uint32_t place(int u) {
        return TURNED ? unit(u) % LEN : unit(u) % (LEN / 8) * 8;
    }
    static __device__ __forceinline__ uint32_t step(int u) {
        return TURNED ? unit(u) / LEN * 8 : unit(u) / (LEN / 8);
    }

    __device__ __forceinline__ void fetch(uint32_t start) {
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            uint32_t row = TURNED ? first + place(u) : start + step(u), rows = TURNED ? count : steps;
            uint32_t col = TURNED ? start + step(u) : first + place(u), cols = TURNED ? steps : count;
            if (UNITS % Tile::THREADS && unit(u) >= UNITS) continue;
            const T *from = matrix + (uint64_t)row * pitch + col;
            if (wide && row < rows && col + 8 <= cols) {
                held[u] = *(const Pack<T, 8> *)from;
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) held[u].v[i] = row < rows && col + i < cols ? from[i] : pad;
            }
        }
    }

    // OFFSET is where the operand begins in a step's values.
    template <int OFFSET> __device__ __forceinline__ void put(typename Tile::Stage &stage) const {
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            if (UNITS % Tile::THREADS && unit(u) >= UNITS) continue;
#pragma unroll
            for (int i = 0; i < 8; i += TURNED ? 1 : 4) {
                float *to = &stage[step(u) + (TURNED ? i : 0)][OFFSET + place(u) + (TURNED ? 0 : i)];
                const T *v = held[u].v + i;
                if (TURNED) *to = widen(v[0]);
                else *(Pack<float, 4> *)to = {widen(v[0]), widen(v[1]), widen(v[2]), widen(v[3])};
            }
        }
    }

    // Changes what this thread has put: `see(value, place, step)` is the new value. Rare, so that small code is better.
    template <int OFFSET, typename See>
    __device__ __forceinline__ void change(typename Tile::Stage &stage, uint32_t start, See see) const {
#pragma unroll 1
        for (uint32_t at = 0; at < EACH * 8; at++) {
            uint32_t u = at / 8, i = at % 8, along = place(u) + (TURNED ? 0 : i), k = step(u) + (TURNED ? i : 0);
            if (unit(u) >= UNITS) return;
            float *value = &stage[k][OFFSET + along];
            *value = see(*value, first + along, start + k);
        }
    }
};

// All steps from..to of a tile, one stage read while the next is fetched. `put(stage, step)` brings what was fetched into
// a stage.
template <typename Tile, typename Left, typename Right, typename Put>
static __device__ __forceinline__ void multiply(float (&sums)[Tile::TM][Tile::TN], Left &left, Right &right, uint32_t from,
                                                uint32_t to, Put put) {
    __shared__ __align__(16) typename Tile::Stage stages[2];
    if (from >= to) return;
    for (uint32_t start = from, stage = 0;; start += Tile::BK, stage ^= 1) {
        bool more = start < to;
        if (more) left.fetch(start), right.fetch(start);
        if (start != from) Tile::multiply(stages[stage ^ 1], sums);
        if (!more) return;
        put(stages[stage], start);
        __syncthreads();
    }
}
