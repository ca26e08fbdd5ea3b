#pragma once

#include "../core/gpu/reduce.h"
#include "../core/gpu/rows.h"

// Attention of a block of rows (token, head) to one share of the keys, with the latent as keys and values. Each of 8
// waves owns an eighth of the latent's columns for both products, so that a block reads each number once: it sums its
// columns' part of the scores, the parts are added up through shared memory, and each wave multiplies the probabilities
// with its own columns. A Tile says how: how many rows and keys, and both products.

namespace openmythos::gpu {

constexpr int SHARE_WAVES = 8, SHARE_THREADS = SHARE_WAVES * WAVE;
constexpr float MINUS_INFINITY = -__builtin_inff();

// Where the key is: the sequence, or its page, and the row in it. Never called for a key past the length, whose page
// may not exist.
struct KeyPlace {
    int64_t sequence;
    int row;
};

OPENMYTHOS_DEVICE int load_index(const void* p, bool wide, int64_t i) {
    return wide ? int(static_cast<const int64_t*>(p)[i]) : static_cast<const int32_t*>(p)[i];
}

template <class Params>
OPENMYTHOS_DEVICE int length_of(const Params& p, int batch) {
    if (!p.seq_lens) return p.total;
    const int length = load_index(p.seq_lens, p.wide_lens, batch);
    return length < 0 ? 0 : length < p.total ? length : p.total;
}

template <class Params>
OPENMYTHOS_DEVICE KeyPlace place_of(const Params& p, int batch, int key) {
    if (!p.page) return {batch, key};
    uint32_t page = uint32_t(key) / uint32_t(p.page);
    return {load_index(p.block_table, p.wide_table, batch * p.table_b + page), key - int(page) * p.page};
}

template <class T, class Params>
OPENMYTHOS_DEVICE const T* latent_at(const Params& p, KeyPlace key) {
    return static_cast<const T*>(p.latent) + key.sequence * p.latent_b + key.row * p.latent_s;
}
template <class T, class Params>
OPENMYTHOS_DEVICE const T* k_rope_at(const Params& p, KeyPlace key) {
    return static_cast<const T*>(p.k_rope) + key.sequence * p.k_rope_b + key.row * p.k_rope_s;
}

// The rows of one block and the keys of its share.
struct Share {
    int batch, first_row, rows;  // rows: of the sequence
    int start, stop, length, last_new;
};

template <int ROWS, int KEYS>
OPENMYTHOS_DEVICE Share share_of(const MlaParams& p) {
    Share x;
    x.rows = p.t * p.h;
    const int blocks = (x.rows + ROWS - 1) / ROWS;
    x.batch = block_index() / blocks, x.first_row = block_index() % blocks * ROWS;
    x.length = length_of(p, x.batch);
    const int share = ((x.length + p.splits - 1) / p.splits + KEYS - 1) / KEYS * KEYS;
    x.start = int64_t(block_index_y()) * share < x.length ? block_index_y() * share : x.length;
    x.stop = share < x.length - x.start ? x.start + share : x.length;
    if (p.causal) {
        // No row of this block sees further.
        int last = x.first_row + ROWS < x.rows ? x.first_row + ROWS : x.rows;
        int limit = x.length - p.t + (last - 1) / p.h + 1;
        if (limit < x.stop) x.stop = limit;
    }
    return x;
}

template <class T, class Tile>
OPENMYTHOS_DEVICE void mla_shares(const MlaParams& p) {
    constexpr int ROWS = Tile::ROWS, KEYS = Tile::KEYS, STRIDE = Tile::SCORES_STRIDE;
    constexpr int LANES = SHARE_THREADS / ROWS, EACH = KEYS / LANES;  // threads of a row, and keys of each
    static_assert(LANES <= WAVE && EACH >= 1 && KEYS % LANES == 0);
    __shared__ float parts[SHARE_WAVES][ROWS][STRIDE];
    __shared__ float factors[ROWS];
    __shared__ typename Tile::Shared shared;

    const Share share = share_of<ROWS, KEYS>(p);
    const int wave = wave_index(), my_row = thread_index() / LANES, my_key = thread_index() % LANES * EACH;
    const int row = share.first_row + my_row;
    int limit = row < share.rows ? share.length : 0;
    if (p.causal) limit = row < share.rows ? share.length - p.t + row / p.h + 1 : 0;

    Tile tile(p, share, shared);
    float most = MINUS_INFINITY, sum = 0.f;
    for (int first = share.start; first < share.stop; first += KEYS) {
        tile.scores(p, share, shared, first, &parts[wave][0][0]);
        sync_block();
        float s[EACH], tile_most = MINUS_INFINITY;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            s[i] = 0.f;
#pragma unroll
            for (int w = 0; w < SHARE_WAVES; w++) s[i] += parts[w][my_row][my_key + i];
            s[i] = first + my_key + i < limit ? s[i] * p.scale : MINUS_INFINITY;
            tile_most = __builtin_fmaxf(tile_most, s[i]);
        }
        tile_most = wave_max<LANES / 2>(tile_most);
        const float next = __builtin_fmaxf(most, tile_most), safe = next == MINUS_INFINITY ? 0.f : next;
        const float factor = fast_exp2(most - safe);
        float tile_sum = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            s[i] = fast_exp2(s[i] - safe);
            tile_sum += s[i];
        }
        sum = fma(sum, factor, wave_sum<LANES / 2>(tile_sum));
        most = next;
        Tile::put(shared, my_row, my_key, s);
        if (my_key == 0) factors[my_row] = factor;
        sync_block();
        tile.values(p, share, shared, first, factors);
    }

    sync_block();
    const int64_t at = (int64_t(share.batch) * p.splits + block_index_y()) * share.rows + share.first_row;
    if (my_key == 0) {
        // What was seen by no row here is -inf, and then nobody reads the row.
        factors[my_row] = sum == 0.f ? 0.f : 1.f / sum;
        if (row < share.rows) p.part_lse[at + my_row] = sum == 0.f ? MINUS_INFINITY : most + fast_log2(sum);
    }
    sync_block();
    if (share.start < share.stop) tile.store(p.part + at * p.dc, share.rows - share.first_row, factors);
}

// Both products by multiply-adds, for any type: a lane has a key and every row for the scores, and columns and every
// row for the values.
template <class T, int DC, int DR>
struct FmaTile {
    static constexpr int ROWS = DC > 384 ? 8 : 16, KEYS = WAVE, SCORES_STRIDE = KEYS;
    static constexpr int SLICE = DC / SHARE_WAVES, ROPE = DR / SHARE_WAVES, COLUMNS = (SLICE + WAVE - 1) / WAVE;
    static constexpr int EACH = 16 / sizeof(T);  // numbers of one load

    struct alignas(16) Shared {
        float queries[ROWS][DC + DR];
        float probabilities[KEYS][ROWS];
        int64_t latent[2][KEYS];  // where the keys of this tile and of the one before are
    };

    float out[ROWS][COLUMNS];
    int lane, wave, parity;

    OPENMYTHOS_DEVICE FmaTile(const MlaParams& p, const Share& share, Shared& shared) {
        lane = lane_index(), wave = wave_index(), parity = 0;
        for (int i = thread_index(); i < ROWS * (DC + DR); i += SHARE_THREADS) {
            int r = i / (DC + DR), c = i % (DC + DR), row = share.first_row + r;
            if (row >= share.rows) row = share.rows - 1;
            const T* from = static_cast<const T*>(p.folded) + (int64_t(share.batch) * share.rows + row) * DC + c;
            if (c >= DC)
                from = static_cast<const T*>(p.q_rope) + share.batch * p.q_rope_b + row / p.h * p.q_rope_t +
                       row % p.h * p.q_rope_h + c - DC;
            shared.queries[r][c] = to_float(*from);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) out[r][i] = 0.f;
        }
        sync_block();
    }

    // Numbers of a key times as many of every row.
    OPENMYTHOS_DEVICE static void products(const T* key, const float* queries, float (&sums)[ROWS]) {
        Words raw = load_cached(key);
        float x[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            if constexpr (sizeof(T) == 4)
                x[j] = __builtin_bit_cast(float, raw.w[j]);
            else
                x[j] = to_float(T{uint16_t(raw.w[j / 2] >> j % 2 * 16)});
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float* q = queries + r * (DC + DR);
#pragma unroll
            for (int j = 0; j < EACH; j++) sums[r] = fma(x[j], q[j], sums[r]);
        }
    }

    OPENMYTHOS_DEVICE void scores(const MlaParams& p, const Share& share, Shared& shared, int first, float* parts) {
        int key = first + lane < share.stop ? first + lane : share.stop - 1;
        const KeyPlace place = place_of(p, share.batch, key);
        const T *latent = latent_at<T>(p, place) + wave * SLICE, *rope = k_rope_at<T>(p, place);
        parity ^= 1;
        if (wave == 0) shared.latent[parity][lane] = latent - static_cast<const T*>(p.latent);
        float sums[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] = 0.f;
#pragma unroll 1
        for (int c = 0; c < SLICE; c += EACH) products(latent + c, &shared.queries[0][wave * SLICE + c], sums);
        if (wave * EACH < DR) {
#pragma unroll 1
            for (int c = wave * EACH; c < DR; c += SHARE_WAVES * EACH)
                products(rope + c, &shared.queries[0][DC + c], sums);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) parts[r * SCORES_STRIDE + lane] = sums[r];
    }

    template <int N>
    OPENMYTHOS_DEVICE static void put(Shared& shared, int row, int key, const float (&x)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) shared.probabilities[key + i][row] = x[i];
    }

    OPENMYTHOS_DEVICE void values(const MlaParams& p, const Share& share, Shared& shared, int first,
                                  const float* factors) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float factor = factors[r];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) out[r][i] *= factor;
        }
        const int count = share.stop - first < KEYS ? share.stop - first : KEYS;
#pragma unroll 1
        for (int k = 0; k < count; k++) {
            const T* from = static_cast<const T*>(p.latent) + shared.latent[parity][k] + wave * SLICE + lane;
            float x[COLUMNS];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) x[i] = i * WAVE + lane < SLICE ? to_float(from[i * WAVE]) : 0.f;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float weight = shared.probabilities[k][r];
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) out[r][i] = fma(weight, x[i], out[r][i]);
            }
        }
    }

    OPENMYTHOS_DEVICE void store(float* part, int rows, const float* factors) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < COLUMNS; i++)
                if (r < rows && i * WAVE + lane < SLICE)
                    part[r * DC + wave * SLICE + i * WAVE + lane] = out[r][i] * factors[r];
        }
    }
};

}  // namespace openmythos::gpu
