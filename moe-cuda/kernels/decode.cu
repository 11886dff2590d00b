// Decode: router, sort, both expert products and the weighted sum of few rows in one launch, in the time that the weights take to
// arrive. On sm_90 and later, for bf16 and f16; a block has a multiprocessor to itself, and all blocks run at once.
//
// For a few tokens the launch routes (decode_route.cuh); else Route has. Every block then sorts the slots by itself. A warp copies
// weights, line by line, into a ring of stages in shared memory, first
// those of ExpertUp, then those of ExpertDown, without ever waiting for anything but room; another warp copies the rows that they
// are multiplied with; eight warps multiply, each a part of the depth, and add their sums in fixed order. Between the
// two products all blocks wait for each other: a row of `a` is made by many of them. Meanwhile the ring fills with weights of
// the second product. A block then has the same columns of all experts, so that it adds up what belongs to a token by itself.
//
// The host sees to it that lines begin at multiples of sixteen bytes.
#include "activation.cuh"
#include "barriers.cuh"
#include "decode_route.cuh"
#include "mma.cuh"

#define WARPS 8u
#define MULTIPLIERS (WARPS * 32)
#define BLOCK (MULTIPLIERS + 64)
// Lines of weights that are multiplied together: LINES columns, or half as many and their up halves.
#define LINES 16u
// Most rows that are multiplied together.
#define ROWS 16u
// Bytes of a line in a stage, and the same in parts of sixteen.
#define PIECE 1024u
#define PARTS (PIECE / 16)
#define WEIGHT_STAGES 8
// Stages of rows: as many as their memory has room for, up to these.
#define ROW_STAGES 16u
#define ROW_LINES 48u
#define MOST_ROWS 512u
// Bytes of dynamic shared memory.
#define SHARED (214u << 10)

// Twin of `DecodeParams` in ops/decode.rs.
struct DecodeParams {
    // x, ids and weights among them
    RouteParams route;
    const void *w13, *b13, *w2, *b2;
    const void *base[3];
    const float *scale[3];
    uint32_t *counts, *dropped;
    void *a, *out;
    // blocks that have come to a place where all wait for each other, over all launches on this stream
    unsigned long long *arrivals;
    Sizes sizes;
    Formula formula;
    // ranks that add the same bias
    float shares;
    uint32_t scores_first;
    // a `Router`
    uint32_t router;
};

#if __CUDA_ARCH__ >= 900
template <typename T> struct Shared {
    uint4 weights[WEIGHT_STAGES][LINES][PARTS];
    uint4 rows[ROW_LINES][PARTS];
    float sums[WARPS][ROWS][LINES];
    // what ExpertDown gives, in this block's columns
    T y[MOST_ROWS][LINES];
    uint4 ids[MOST_ROWS / 4];
    float weight[MOST_ROWS];
    uint32_t row_of_slot[MOST_ROWS], slot_of_row[MOST_ROWS];
    // of the experts that have rows: the number of each, its first row, and the end of the last
    uint32_t expert[MOST_ROWS], first[MOST_ROWS + 1], busy;
    // rows that an item has at most
    uint32_t together;
    // of DecodeParams, before this block comes to the middle
    unsigned long long arrivals;
    // of the router
    float odd[ROUTED_TOKENS][COLUMNS];
    uint32_t ignored;
    uint64_t weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], rows_full[ROW_STAGES], rows_empty[ROW_STAGES];
};

// Rows of one expert, `together` at most, and LINES lines of its weights.
struct Item {
    bool down;
    uint32_t expert, first, count, column;
};

// A place in a ring of stages whose number the launch's rows decide.
struct Turn {
    uint32_t stages, stage = 0, phase = 0;
    __device__ void next() {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

template <typename T> struct Decode {
    const DecodeParams &p;
    Shared<T> &s;

    __device__ __forceinline__ uint32_t lanes() const { return threadIdx.x % 32; }
    __device__ __forceinline__ bool gated() const { return p.formula.gated(); }
    __device__ __forceinline__ uint32_t span() const { return gated() ? LINES / 2 : LINES; }
    __device__ __forceinline__ uint32_t up_width() const { return gated() ? 2 * p.sizes.hidden : p.sizes.hidden; }
    __device__ __forceinline__ uint32_t bytes(bool down) const {
        return (down ? p.sizes.hidden : p.sizes.width) * (uint32_t)sizeof(T);
    }

    // Until all blocks' arrivals of this round are counted, of which `before` saw none or some: of the rounds before, every block is counted.
    // One thread.
    __device__ __forceinline__ unsigned long long wait_for_all(unsigned long long before) {
        unsigned long long all = (before / gridDim.x + 1) * gridDim.x, now = 0;
        while (now < all) asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(p.arrivals) : "memory");
        return all;
    }

    // What the routing left, or room for it. All threads; followed by a barrier.
    __device__ __forceinline__ void prepare() {
        uint32_t slots = p.sizes.rows, *ids = (uint32_t *)s.ids;
        if (threadIdx.x == BLOCK - 1) s.arrivals = *(volatile unsigned long long *)p.arrivals;
        for (uint32_t slot = threadIdx.x; slot < (slots + 3) / 4 * 4; slot += BLOCK) {
            bool there = slot < slots && p.router == APART;
            // Both on their way before either is needed.
            uint32_t id = there ? p.route.ids[slot] : ~0u;
            float weight = there ? p.route.weights[slot] : 0.0f;
            ids[slot] = there ? min(id, p.sizes.experts) : ~0u;
            s.weight[slot] = weight;
            s.slot_of_row[slot] = NO_ROW;
        }
    }

    // All threads; followed by a barrier.
    __device__ __forceinline__ void route() {
        static_assert(sizeof(s.weights) >= LINES_BYTES, "room for the router's lines");
        if (blockIdx.x == 0 && threadIdx.x == 0) *p.route.non_finite = 0;
        if (p.router == EXACT) {
            RouteLines<T, float> lines(p.route, s.weights);
            lines.fetch();
            __syncthreads();
            if (warp_id() == 0) exact_logits(lines);
        } else {
            RouteLines<T, T> lines(p.route, s.weights);
            lines.fetch();
            __syncthreads();
            native_logits(lines, s.odd);
        }
        // Copies of weights will come where the lines were.
        fence_async();
        if (warp_id() == 0) {
            __syncwarp();
            if (lanes() == 0) {
                __threadfence();
                atomicAdd(p.arrivals, 1ull);
                s.arrivals = wait_for_all(s.arrivals);
            }
        }
        __syncthreads();
        RouteParams own = p.route;
        own.ids = (uint32_t *)s.ids;
        own.weights = s.weight;
        if (blockIdx.x > 0) own.non_finite = &s.ignored;
        // Two of the kinds there are, so that the kernel stays small.
        if (warp_id() >= p.route.tokens) return;
        if (p.route.experts <= 128) choose<4>(own, warp_id(), lanes());
        else choose<16>(own, warp_id(), lanes());
    }

    // A slot's row is the number of slots with a lower expert, or the same and a lower number. All threads call it.
    __device__ __forceinline__ void sort() {
        uint32_t slots = p.sizes.rows, *ids = (uint32_t *)s.ids;
        for (uint32_t slot = threadIdx.x; slot < slots; slot += BLOCK) {
            uint32_t id = ids[slot], row = 0;
            for (uint32_t i = 0; i < (slots + 3) / 4; i++) {
                uint4 v = s.ids[i];
                uint32_t four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) row += four[j] < id || (four[j] == id && i * 4 + j < slot);
            }
            bool there = id < p.sizes.experts;
            s.row_of_slot[slot] = there ? row : NO_ROW;
            if (there) s.slot_of_row[row] = slot;
        }
        __syncthreads();
        if (threadIdx.x < 32) list_experts(ids);
        __syncthreads();
    }

    __device__ __forceinline__ void list_experts(const uint32_t *ids) {
        uint32_t busy = 0, rows = 0;
        for (uint32_t from = 0; from < p.sizes.rows; from += 32) {
            uint32_t row = from + lanes(), slot = row < p.sizes.rows ? s.slot_of_row[row] : NO_ROW;
            bool there = slot != NO_ROW;
            bool begins = there && (row == 0 || ids[s.slot_of_row[row - 1]] != ids[slot]);
            uint32_t all = __ballot_sync(~0u, begins), nth = busy + __popc(all & ((1u << lanes()) - 1));
            if (begins) s.expert[nth] = ids[slot], s.first[nth] = row;
            busy += __popc(all);
            rows += __popc(__ballot_sync(~0u, there));
        }
        if (lanes() == 0) s.busy = busy, s.first[busy] = rows;
        __syncwarp();
        uint32_t most = 1;
        for (uint32_t nth = lanes(); nth < busy; nth += 32) most = max(most, s.first[nth + 1] - s.first[nth]);
        most = min(__reduce_max_sync(~0u, most), rows > ROWS / 2 * busy ? ROWS : ROWS / 2);
        // A power of two, so that the room for rows is used up.
        if (lanes() == 0) s.together = 1u << (32 - __clz(most - 1));
    }

    // `each_up` and `each_down` call `visit` for the block's items of a product, in the order in which all warps go through them, and
    // `end(column)` after the last item of a column of ExpertDown.
    template <class Visit> __device__ __forceinline__ void rows_of(uint32_t nth, bool down, uint32_t column, const Visit &visit) {
        for (uint32_t row = s.first[nth]; row < s.first[nth + 1]; row += s.together) {
            visit(Item{down, s.expert[nth], row, min(s.together, s.first[nth + 1] - row), column});
        }
    }
    template <class Visit> __device__ __forceinline__ void each_up(const Visit &visit) {
        uint32_t columns = (p.sizes.hidden + span() - 1) / span();
        for (uint32_t at = blockIdx.x; at < s.busy * columns; at += gridDim.x) rows_of(at / columns, false, at % columns, visit);
    }
    template <class Visit, class End> __device__ __forceinline__ void each_down(const Visit &visit, const End &end) {
        for (uint32_t column = blockIdx.x; column < (p.sizes.width + LINES - 1) / LINES; column += gridDim.x) {
            for (uint32_t nth = 0; nth < s.busy; nth++) rows_of(nth, true, column, visit);
            end(column);
        }
    }

    // A line of weights, null if it does not exist.
    __device__ __forceinline__ const char *line(const Item &item, uint32_t i) const {
        const Sizes &n = p.sizes;
        if (item.down) {
            uint32_t at = item.column * LINES + i;
            return at < n.width ? (const char *)((const T *)p.w2 + ((uint64_t)item.expert * n.width + at) * n.hidden) : nullptr;
        }
        uint32_t at = item.column * span() + i % span();
        uint64_t of = (uint64_t)item.expert * up_width() + i / span() * n.hidden + at;
        return at < n.hidden ? (const char *)((const T *)p.w13 + of * n.width) : nullptr;
    }

    // One warp, a lane per line.
    __device__ __forceinline__ void feed_weights() {
        Place<WEIGHT_STAGES> place;
        uint64_t policy = read_once();
        auto feed = [&](const Item &item) {
            const char *from = lanes() < LINES ? line(item, lanes()) : nullptr;
            uint32_t lines = __popc(__ballot_sync(~0u, from != nullptr));
            for (uint32_t at = 0; at < bytes(item.down); at += PIECE, place.next()) {
                uint32_t size = min(PIECE, bytes(item.down) - at), full = shared_address(&s.weights_full[place.stage]);
                barrier_wait(shared_address(&s.weights_empty[place.stage]), place.phase ^ 1);
                if (lanes() == 0) barrier_expect(full, lines * size);
                __syncwarp();
                if (from) copy_bulk(shared_address(s.weights[place.stage][lanes()]), from + at, size, full, policy);
            }
        };
        each_up(feed);
        each_down(feed, [](uint32_t) {});
    }

    __device__ __forceinline__ Turn row_stages() const { return {min(ROW_LINES / s.together, ROW_STAGES)}; }

    // One warp.
    __device__ __forceinline__ void feed_rows() {
        Turn place = row_stages();
        auto feed = [&](const Item &item) {
            for (uint32_t at = 0; at < bytes(item.down); at += PIECE, place.next()) {
                uint32_t size = min(PIECE, bytes(item.down) - at);
                barrier_wait(shared_address(&s.rows_empty[place.stage]), place.phase ^ 1);
                for (uint32_t m = 0; m < item.count; m++) {
                    uint32_t row = item.first + m, source = item.down ? row : s.slot_of_row[row] / p.sizes.fan;
                    const char *line = (const char *)(item.down ? p.a : p.route.x) + (uint64_t)source * bytes(item.down) + at;
#pragma unroll
                    for (uint32_t part = lanes(); part < PARTS; part += 32) {
                        if (part * 16 < size) copy_async(&s.rows[place.stage * s.together + m][part], line + part * 16, 16);
                    }
                }
                copies_arrive(shared_address(&s.rows_full[place.stage]));
            }
        };
        each_up(feed);
        if (lanes() == 0) wait_for_all(s.arrivals);
        __syncwarp();
        each_down(feed, [](uint32_t) {});
    }

    static __device__ __forceinline__ void multipliers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory"); }

    // The sums of a row and a line, one of each in a thread; those of more rows than there are have no meaning.
    __device__ __forceinline__ float product(const Item &item, Place<WEIGHT_STAGES> &w, Turn &x) {
        float sums[ROWS / 8][4] = {};
        uint32_t g = lanes() / 4, t = lanes() % 4;
        for (uint32_t at = 0; at < bytes(item.down); at += PIECE) {
            uint32_t parts = min(PIECE, bytes(item.down) - at) / 16;
            barrier_wait(shared_address(&s.weights_full[w.stage]), w.phase);
            barrier_wait(shared_address(&s.rows_full[x.stage]), x.phase);
            const uint4(*lines)[PARTS] = s.weights[w.stage], (*rows)[PARTS] = s.rows + x.stage * s.together;
#pragma unroll
            for (uint32_t step = 0; step < PARTS / 4 / WARPS; step++) {
                uint32_t part = (step * WARPS + warp_id()) * 4 + t;
                if (part - t >= parts) break;
                const uint4 none = {0, 0, 0, 0};
                bool some = part < parts;
                uint4 low = some ? lines[g][part] : none, high = some ? lines[g + 8][part] : none;
#pragma unroll
                for (uint32_t n = 0; n < ROWS / 8; n++) {
                    if (n * 8 >= item.count) break;
                    uint4 row = some && n * 8 + g < item.count ? rows[n * 8 + g][part] : none;
                    float(&c)[4] = sums[n];
                    mma(T(), c[0], c[1], c[2], c[3], {low.x, high.x, low.y, high.y}, row.x, row.y);
                    mma(T(), c[0], c[1], c[2], c[3], {low.z, high.z, low.w, high.w}, row.z, row.w);
                }
            }
            // Every lane: racecheck does not know that one could speak for a warp that has met.
            barrier_arrive(shared_address(&s.weights_empty[w.stage]));
            barrier_arrive(shared_address(&s.rows_empty[x.stage]));
            w.next();
            x.next();
        }
#pragma unroll
        for (uint32_t n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) s.sums[warp_id()][n * 8 + t * 2 + i % 2][i / 2 * 8 + g] = sums[n][i];
        multipliers_sync();
        float sum = 0.0f;
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS; warp++) sum += s.sums[warp][threadIdx.x / LINES][threadIdx.x % LINES];
        // Before the next product's sums.
        multipliers_sync();
        return sum;
    }

    // h, rounded, and its activation.
    __device__ __forceinline__ void finish_up(const Item &item, float sum) {
        const Sizes &n = p.sizes;
        uint32_t m = threadIdx.x / LINES, i = threadIdx.x % LINES, half = i / span(), at = item.column * span() + i % span();
        const T *b13 = (const T *)p.b13;
        float bias = b13 && at < n.hidden ? widen(b13[(uint64_t)item.expert * up_width() + half * n.hidden + at]) : 0.0f;
        float h = widen(narrow<T>(p.scores_first ? sum : b13 ? sum + bias : sum)), z = h;
        if (p.scores_first && m < item.count) z = fused(s.weight[s.slot_of_row[item.first + m]], h, bias);
        float up = __shfl_down_sync(~0u, z, LINES / 2);
        if (m >= item.count || half > 0 || at >= n.hidden) return;
        ((T *)p.a)[(uint64_t)(item.first + m) * n.hidden + at] = narrow<T>(activate(p.formula, z, up));
    }

    __device__ __forceinline__ void finish_down(const Item &item, float sum) {
        uint32_t m = threadIdx.x / LINES, i = threadIdx.x % LINES, at = item.column * LINES + i;
        const T *b2 = (const T *)p.b2;
        if (b2 && at < p.sizes.width) sum += widen(b2[(uint64_t)item.expert * p.sizes.width + at]) / p.shares;
        if (m < item.count) s.y[item.first + m][i] = narrow<T>(sum);
    }

    // The tokens' sums in the block's columns, in slot order.
    __device__ __forceinline__ void combine(uint32_t column) {
        const Sizes &n = p.sizes;
        for (uint32_t at = threadIdx.x; at < n.tokens * LINES; at += MULTIPLIERS) {
            uint32_t token = at / LINES, d = column * LINES + at % LINES;
            if (d >= n.width) continue;
            uint64_t place = (uint64_t)token * n.width + d;
            float sum = 0.0f;
            for (uint32_t slot = token * n.fan; slot < (token + 1) * n.fan; slot++) {
                uint32_t row = s.row_of_slot[slot];
                if (row == NO_ROW) continue;
                sum = fused(p.scores_first ? 1.0f : s.weight[slot], widen(s.y[row][at % LINES]), sum);
            }
            for (int b = 0; b < 3; b++) {
                if (p.base[b]) sum = fused(p.scale[b] ? p.scale[b][token] : 1.0f, widen(((const T *)p.base[b])[place]), sum);
            }
            ((T *)p.out)[place] = narrow<T>(sum);
        }
    }

    // Slots per expert, those without a row, and what was routed.
    __device__ __forceinline__ void count() {
        const uint32_t *ids = (const uint32_t *)s.ids;
        for (uint32_t slot = threadIdx.x; p.router != APART && slot < p.sizes.rows; slot += MULTIPLIERS) {
            p.route.ids[slot] = ids[slot];
            p.route.weights[slot] = s.weight[slot];
        }
        for (uint32_t e = threadIdx.x; e < p.sizes.experts; e += MULTIPLIERS) {
            uint32_t own = 0;
            for (uint32_t slot = 0; slot < p.sizes.rows; slot++) own += ids[slot] == e;
            p.counts[e] = own;
        }
        if (threadIdx.x == 0) *p.dropped = p.sizes.rows - s.first[s.busy];
    }

    __device__ __forceinline__ void multiply() {
        Place<WEIGHT_STAGES> w;
        Turn x = row_stages();
        if (blockIdx.x == gridDim.x - 1) count();
        each_up([&](const Item &item) { finish_up(item, product(item, w, x)); });
        multipliers_sync();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(p.arrivals, 1ull);
        }
        auto down = [&](const Item &item) { finish_down(item, product(item, w, x)); };
        each_down(down, [&](uint32_t column) {
            multipliers_sync();
            combine(column);
            multipliers_sync();
        });
    }
};
#endif

template <typename T> static __device__ __forceinline__ void decode(const DecodeParams &p) {
#if __CUDA_ARCH__ >= 900
    static_assert(sizeof(Shared<T>) <= SHARED, "shared memory");
    extern __shared__ __align__(128) uint8_t memory[];
    Shared<T> &s = *(Shared<T> *)memory;
    Decode<T> decode = {p, s};
    uint32_t warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < WEIGHT_STAGES; i++) {
            barrier_init(shared_address(&s.weights_full[i]), 1);
            barrier_init(shared_address(&s.weights_empty[i]), MULTIPLIERS);
        }
        for (uint32_t i = 0; i < ROW_STAGES; i++) {
            barrier_init(shared_address(&s.rows_full[i]), 32);
            barrier_init(shared_address(&s.rows_empty[i]), MULTIPLIERS);
        }
        barriers_made();
    }
    decode.prepare();
    __syncthreads();
    if (p.router != APART) {
        decode.route();
        __syncthreads();
    }
    decode.sort();
    if (warp == WARPS) decode.feed_weights();
    else if (warp == WARPS + 1) decode.feed_rows();
    else decode.multiply();
#endif
}

KERNEL(decode_bf16, DecodeParams, BLOCK, 1) { decode<bf16>(p); }
KERNEL(decode_f16, DecodeParams, BLOCK, 1) { decode<f16>(p); }
