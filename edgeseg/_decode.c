/* Exact decode: bilinear upsampling and argmax in one pass, for rows [first, last) of the output.
 *
 * Built at install, loaded by _native.py with ctypes; no Python API. The definition, step by step and in the same
 * float32 operations, is _decode_numpy.py: both must agree in every bit, so nothing here may fuse or reorder a sum.
 *
 * Output pixels fall into cells spanned by four neighbouring logit vectors a b / c d. A score inside a cell is
 *     L = wy0*a + wy1*c;  R = wy0*b + wy1*d;  s = wx0*L + wx1*R        (weights >= 0)
 * and each of these operations is monotone under rounding: a class that another one beats at all four corners cannot
 * come out ahead of it anywhere in the cell. The rest, usually one to four classes, are evaluated.
 * The same holds along one row of a cell with its two ends L and R, except that rounding may turn "less" into "equal";
 * rows therefore demand a margin (`slack`) larger than the rounding of both scores.
 *
 * Confidence is max e_k / sum e_k with e_k = 2^(score of k - bilinear maxima of the corners), in powers of two: no e_k
 * exceeds 1, and where one class wins at all corners its own is 1. Down a column of a cell each exponent is linear in
 * y, so e_k is a geometric sequence: one multiplication a pixel. Powers are computed anew every RUN rows, counted from
 * the cell's first, because each multiplication adds its own rounding and that of the quotient: together at most
 * 12 * 1.3e-7 of a term, a quarter of which reaches the confidence. Classes are left out where they cannot add 1e-7.
 */
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "float32 is not computed in float32 here (x87?); the numpy path serves instead"
#endif
#if defined(__FAST_MATH__)
#error "-ffast-math changes results; the numpy path serves instead"
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)
#define EXPORT __declspec(dllexport)
#define INLINE static __forceinline
#define PREFETCH(address) ((void)(address))
#else
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* GCC knows no STDC pragma; the build also passes the flag */
#endif
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address, 1)
#endif

/* One clone per instruction set, chosen by the loader. Needs ifunc: glibc on x86-64. Helpers are forced inline
 * because only what is inlined into the clone is compiled for it. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define ABI 2
#define MAX_CLASSES 256
/* Loops over a block's pixels count from 0: Python's build flags include -fwrapv, under which x + i could wrap and the
 * loop is not vectorised. */
#define LANES 16  /* pixels per block; tables are padded by this many entries */
#define CHUNK 128 /* pixels per pass where scores are kept */
#define LIMIT 1e38f
#define RUN 12    /* rows from one restart of the sequences to the next */
#define STRIP 32  /* columns in which they run at a time */
#define SHORT 4    /* cells of fewer rows are not worth a sequence */
#define STEEP (-60) /* exponents below: sequences would come near the ends of float32's range */

typedef struct {
    const float *logits;   /* (classes, in_rows, in_cols) */
    const int32_t *y_start; /* first output row of each row of cells, then out_rows */
    const int32_t *y_index; /* upper logits row of each row of cells */
    const float *wy0, *wy1;
    const int32_t *x_start, *x_index;
    const float *wx0, *wx1;
    const uint8_t *labels; /* class -> label written, 256 entries */
    uint8_t *out;          /* (out_rows, out_cols) */
    float *confidence;     /* (out_rows, out_cols) or NULL */
    int32_t classes, in_rows, in_cols, out_rows, out_cols, x_cells, y_cells;
    int32_t scored;        /* compute confidence, returned or not */
    float threshold;       /* one-channel heads: foreground above this logit */
    float cut;             /* terms 2^x, x < cut, count as 0 */
    float unknown_below;   /* confidence below this -> 255; 0 never */
} Job;

typedef struct {
    float a[MAX_CLASSES], b[MAX_CLASSES], c[MAX_CLASSES], d[MAX_CLASSES];
} Corners;

typedef struct {
    int32_t x, x_end, y, y_end;
} Box;

/* NaN -> -1e38 (it fails the first comparison), infinities to +-1e38. */
INLINE float bounded(float v)
{
    v = v > -LIMIT ? v : -LIMIT;
    return v < LIMIT ? v : LIMIT;
}

/* 2^x for |x| <= 120, relative error 1e-7, 2^0 exactly 1: 2^k * 2^f, k by the round-to-integer constant. */
INLINE float power(float x)
{
    const float shifted = x + 12582912.0f;
    const float f = x - (shifted - 12582912.0f);
    float p = 0.0001535336f;
    uint32_t bits;
    float scale;
    p = p * f + 0.0013398875f;
    p = p * f + 0.009618437f;
    p = p * f + 0.055503324f;
    p = p * f + 0.24022648f;
    p = p * f + 0.6931472f;
    p = p * f + 1.0f;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* v where keep is 1, 0 where it is 0; a mask, because a branch around arithmetic is not vectorised. */
INLINE float masked(float v, uint32_t keep)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits &= 0u - keep;
    memcpy(&v, &bits, 4);
    return v;
}

/* The best class at each logit of one row: first index on ties. */
INLINE void best_classes(const Job *job, int32_t row, uint8_t *best_class)
{
    const size_t plane = (size_t)job->in_rows * job->in_cols;
    for (int32_t x = 0; x < job->in_cols; x += CHUNK) {
        const int32_t n = job->in_cols - x < CHUNK ? job->in_cols - x : CHUNK;
        const float *p = job->logits + (size_t)row * job->in_cols + x;
        float best[CHUNK];
        int32_t index[CHUNK];
        for (int32_t i = 0; i < n; i++) {
            best[i] = bounded(p[i]);
            index[i] = job->classes == 1 && best[i] > job->threshold;
        }
        for (int32_t k = 1; k < job->classes; k++) {
            p += plane;
            for (int32_t i = 0; i < n; i++) {
                const float v = bounded(p[i]);
                index[i] = v > best[i] ? k : index[i];
                best[i] = v > best[i] ? v : best[i];
            }
        }
        for (int32_t i = 0; i < n; i++)
            best_class[x + i] = (uint8_t)index[i];
    }
}

INLINE void gather(const Job *job, size_t at, size_t right, size_t down, Corners *v)
{
    const size_t plane = (size_t)job->in_rows * job->in_cols;
    const float *p = job->logits + at;
    for (int32_t k = 0; k < job->classes; k++, p += plane) {
        v->a[k] = bounded(p[0]);
        v->b[k] = bounded(p[right]);
        v->c[k] = bounded(p[down]);
        v->d[k] = bounded(p[down + right]);
    }
}

/* The classes, ascending, that no corner's winner beats at all four corners; equal values go to the lower index. */
INLINE int32_t candidates(const Corners *v, int32_t classes, const uint8_t *winners, uint8_t *kept)
{
    int32_t beaten[MAX_CLASSES];
    int32_t n = 0;
    if (classes == 1) { /* winners are labels, not classes */
        kept[0] = 0;
        return 1;
    }
    for (int32_t k = 0; k < classes; k++)
        beaten[k] = 0;
    for (int32_t w = 0; w < 4; w++) {
        const int32_t j = winners[w];
        const float a = v->a[j], b = v->b[j], c = v->c[j], d = v->d[j];
        if ((w > 0 && j == winners[0]) || (w > 1 && j == winners[1]) || (w > 2 && j == winners[2]))
            continue;
        for (int32_t k = 0; k < j; k++)
            beaten[k] |= (v->a[k] < a) & (v->b[k] < b) & (v->c[k] < c) & (v->d[k] < d);
        for (int32_t k = j + 1; k < classes; k++)
            beaten[k] |= (v->a[k] <= a) & (v->b[k] <= b) & (v->c[k] <= c) & (v->d[k] <= d);
    }
    for (int32_t k = 0; k < classes; k++)
        if (!beaten[k])
            kept[n++] = (uint8_t)k;
    return n;
}

/* More than twice the rounding of two scores whose corners are at most `scale`; FLT_MIN covers denormals. */
INLINE float slack_for(float scale)
{
    return 1e-6f * scale + FLT_MIN;
}

INLINE float largest(float scale, float v)
{
    v = v < 0 ? -v : v;
    return v > scale ? v : scale;
}

/* Calls for the memory of rows [y, end), to be written next: each lies in other pages, where hardware does not look. */
INLINE void call_for(const Job *job, int32_t y, int32_t end)
{
    for (; y < end; y++)
        for (int32_t x = 0; x < job->out_cols; x += 64)
            PREFETCH(job->out + (size_t)y * job->out_cols + x);
}

INLINE void fill(const Job *job, const Box *box, uint8_t label, int64_t *counts)
{
    const int32_t n = box->x_end - box->x;
    for (int32_t y = box->y; y < box->y_end; y++)
        memset(job->out + (size_t)y * job->out_cols + box->x, label, (size_t)n);
    if (counts)
        counts[label] += (int64_t)n * (box->y_end - box->y);
}

/* Counts written labels; they come in runs, so eight at once where they are alike. */
INLINE void tally(const uint8_t *labels, int32_t n, int64_t *counts)
{
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, labels + i, 8);
        if (eight == labels[i] * UINT64_C(0x0101010101010101))
            counts[labels[i]] += 8;
        else
            for (int32_t k = 0; k < 8; k++)
                counts[labels[i + k]]++;
    }
    for (; i < n; i++)
        counts[labels[i]]++;
}

/* Labels of n pixels (rounded up to LANES) from the row ends of m classes; a later class needs strictly more. */
INLINE void pick(const float *w0, const float *w1, int32_t n, const float *left, const float *right,
                 const int32_t *label, const int32_t m, uint8_t *__restrict dst)
{
    for (int32_t x = 0; x < n; x += LANES, w0 += LANES, w1 += LANES, dst += LANES) {
        for (int32_t i = 0; i < LANES; i++) {
            float best = w0[i] * left[0] + w1[i] * right[0];
            int32_t chosen = label[0];
            for (int32_t k = 1; k < m; k++) {
                const float s = w0[i] * left[k] + w1[i] * right[k];
                chosen = s > best ? label[k] : chosen;
                best = s > best ? s : best;
            }
            dst[i] = (uint8_t)chosen;
        }
    }
}

/* The same for any m, at most CHUNK pixels: classes outside, pixels inside, as compilers vectorise it. */
INLINE void pick_many(const float *w0, const float *w1, int32_t n, const float *left, const float *right,
                      const int32_t *label, int32_t m, uint8_t *__restrict dst)
{
    float best[CHUNK];
    int32_t chosen[CHUNK];
    for (int32_t i = 0; i < n; i++) {
        best[i] = w0[i] * left[0] + w1[i] * right[0];
        chosen[i] = label[0];
    }
    for (int32_t k = 1; k < m; k++) {
        const float l = left[k], r = right[k];
        const int32_t own = label[k];
        for (int32_t i = 0; i < n; i++) {
            const float s = w0[i] * l + w1[i] * r;
            chosen[i] = s > best[i] ? own : chosen[i];
            best[i] = s > best[i] ? s : best[i];
        }
    }
    for (int32_t i = 0; i < n; i++)
        dst[i] = (uint8_t)chosen[i];
}

INLINE void pick_above(const float *w0, const float *w1, int32_t n, float left, float right, float threshold,
                       int32_t below, int32_t above, uint8_t *__restrict dst)
{
    for (int32_t x = 0; x < n; x += LANES, w0 += LANES, w1 += LANES, dst += LANES)
        for (int32_t i = 0; i < LANES; i++)
            dst[i] = (uint8_t)(w0[i] * left + w1[i] * right > threshold ? above : below);
}

/* A cell whose corners disagree: only classes that can still win in a row are evaluated in it. */
INLINE void mixed_cell(const Job *job, const Box *box, const Corners *v, const uint8_t *kept, int32_t m,
                       int64_t *counts)
{
    const int32_t width = box->x_end - box->x;
    const int32_t blocks = (width + LANES - 1) / LANES * LANES;
    const int binary = job->classes == 1;
    const float *w0 = job->wx0 + box->x, *w1 = job->wx1 + box->x;
    float a[MAX_CLASSES], b[MAX_CLASSES], c[MAX_CLASSES], d[MAX_CLASSES], scale = 0;
    float left[MAX_CLASSES], right[MAX_CLASSES];
    int32_t label[MAX_CLASSES], row_label[MAX_CLASSES];
    if (binary) { /* background as a class whose score is the threshold everywhere */
        m = 2;
        a[0] = b[0] = c[0] = d[0] = job->threshold;
        a[1] = v->a[0], b[1] = v->b[0], c[1] = v->c[0], d[1] = v->d[0];
        label[0] = job->labels[0], label[1] = job->labels[1];
    } else {
        for (int32_t k = 0; k < m; k++) {
            const int32_t j = kept[k];
            a[k] = v->a[j], b[k] = v->b[j], c[k] = v->c[j], d[k] = v->d[j];
            label[k] = job->labels[j];
        }
    }
    for (int32_t k = 0; k < m; k++)
        scale = largest(largest(largest(largest(scale, a[k]), b[k]), c[k]), d[k]);
    const float slack = slack_for(scale);

    for (int32_t y = box->y; y < box->y_end; y++) {
        const float u0 = job->wy0[y], u1 = job->wy1[y];
        uint8_t *row = job->out + (size_t)y * job->out_cols + box->x;
        int32_t at_left = 0, at_right = 0, n = 0;
        for (int32_t k = 0; k < m; k++) {
            left[k] = u0 * a[k] + u1 * c[k];
            right[k] = u0 * b[k] + u1 * d[k];
        }
        if (binary)
            left[0] = right[0] = job->threshold;
        for (int32_t k = 1; k < m; k++) {
            at_left = left[k] > left[at_left] ? k : at_left;
            at_right = right[k] > right[at_right] ? k : at_right;
        }
        const float l0 = left[at_left] - slack, r0 = right[at_left] - slack;
        const float l1 = left[at_right] - slack, r1 = right[at_right] - slack;
        for (int32_t k = 0; k < m; k++) {
            left[n] = left[k], right[n] = right[k], row_label[n] = label[k];
            n += !(((left[k] < l0) & (right[k] < r0)) | ((left[k] < l1) & (right[k] < r1)));
        }
        if (n == 1) {
            memset(row, row_label[0], (size_t)width);
            if (counts)
                counts[row_label[0]] += width;
            continue;
        }
        /* Whole blocks may run over into cells to the right, which are written later, but not over the row's end. */
        uint8_t spare[CHUNK];
        for (int32_t x = 0; x < width; x += CHUNK) {
            const int32_t span = blocks - x < CHUNK ? blocks - x : CHUNK;
            const int direct = box->x + x + span <= job->out_cols;
            uint8_t *dst = direct ? row + x : spare;
            if (binary)
                pick_above(w0 + x, w1 + x, span, left[1], right[1], job->threshold, label[0], label[1], dst);
            else if (n == 2)
                pick(w0 + x, w1 + x, span, left, right, row_label, 2, dst);
            else if (n == 3)
                pick(w0 + x, w1 + x, span, left, right, row_label, 3, dst);
            else
                pick_many(w0 + x, w1 + x, span, left, right, row_label, n, dst);
            if (!direct)
                memcpy(row + x, spare, (size_t)(width - x < CHUNK ? width - x : CHUNK));
        }
        if (counts)
            tally(row, width, counts);
    }
}

/* The classes of one cell that confidence hears: corner exponents, candidates last. */
typedef struct {
    float a[MAX_CLASSES], b[MAX_CLASSES], c[MAX_CLASSES], d[MAX_CLASSES];
    int32_t candidates, n; /* of them, and in all */
    int steep;
} Heard;

/* Left out: classes below one winner by `cut` at all corners. What they could add to the sum is below 1e-7 of it. */
INLINE void hear(const Corners *v, int32_t classes, const uint8_t *winners, const uint8_t *kept, int32_t m, float cut,
                 Heard *heard)
{
    const float log2_e = 1.44269504f;
    const float top_a = v->a[winners[0]], top_b = v->b[winners[1]];
    const float top_c = v->c[winners[2]], top_d = v->d[winners[3]];
    float a[MAX_CLASSES], b[MAX_CLASSES], c[MAX_CLASSES], d[MAX_CLASSES], low = 0;
    int32_t silent[MAX_CLASSES], n = 0;
    for (int32_t k = 0; k < classes; k++) {
        a[k] = (v->a[k] - top_a) * log2_e;
        b[k] = (v->b[k] - top_b) * log2_e;
        c[k] = (v->c[k] - top_c) * log2_e;
        d[k] = (v->d[k] - top_d) * log2_e;
        silent[k] = 0;
    }
    for (int32_t w = 0; w < 4; w++) {
        const int32_t j = winners[w];
        const float a0 = a[j], b0 = b[j], c0 = c[j], d0 = d[j];
        if (w > 0 && j == winners[w - 1])
            continue;
        for (int32_t k = 0; k < classes; k++)
            silent[k] |= (a[k] - a0 < cut) & (b[k] - b0 < cut) & (c[k] - c0 < cut) & (d[k] - d0 < cut);
    }
    for (int32_t i = 0; i < m; i++)
        silent[kept[i]] = 1;
    for (int32_t k = 0; k < classes; k++) {
        heard->a[n] = a[k], heard->b[n] = b[k], heard->c[n] = c[k], heard->d[n] = d[k];
        n += !silent[k];
    }
    for (int32_t i = 0; i < m; i++, n++) {
        const int32_t k = kept[i];
        heard->a[n] = a[k], heard->b[n] = b[k], heard->c[n] = c[k], heard->d[n] = d[k];
    }
    for (int32_t k = 0; k < n; k++) {
        const float left = heard->a[k] < heard->c[k] ? heard->a[k] : heard->c[k];
        const float right = heard->b[k] < heard->d[k] ? heard->b[k] : heard->d[k];
        low = left < low ? left : low;
        low = right < low ? right : low;
    }
    heard->candidates = m;
    heard->n = n;
    heard->steep = low < STEEP;
}

/* Powers of two along one row of a strip, from the exponents at its two ends. */
INLINE void powers(const float *w0, const float *w1, int32_t span, float left, float right, float *__restrict e)
{
    for (int32_t x = 0; x < span; x += LANES, w0 += LANES, w1 += LANES, e += LANES)
        for (int32_t i = 0; i < LANES; i++)
            e[i] = power(w0[i] * left + w1[i] * right);
}

INLINE float larger(float a, float b)
{
    return b > a ? b : a;
}

/* Adds the sequences of m <= 4 classes to the sums of `rows` rows, or up to three more: four rows stay in registers.
 * Terms are first added among themselves: small ones added singly to a large sum would be lost. */
INLINE void add(float (*__restrict sum)[STRIP], float (*__restrict best)[STRIP], float (*__restrict e)[STRIP],
                float (*__restrict q)[STRIP], int32_t rows, int32_t span, const int32_t m, const int candidates)
{
    for (int32_t y = 0; y < rows; y += 4)
        for (int32_t x = 0; x < span; x += LANES)
            for (size_t j = 0; j < LANES; j++) {
                const size_t i = (size_t)x + j;
                float s0 = 0, s1 = 0, s2 = 0, s3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
                for (int32_t k = 0; k < m; k++) {
                    const float by = q[k][i], t0 = e[k][i], t1 = t0 * by, t2 = t1 * by, t3 = t2 * by;
                    s0 = k ? s0 + t0 : t0, b0 = larger(b0, t0);
                    s1 = k ? s1 + t1 : t1, b1 = larger(b1, t1);
                    s2 = k ? s2 + t2 : t2, b2 = larger(b2, t2);
                    s3 = k ? s3 + t3 : t3, b3 = larger(b3, t3);
                    e[k][i] = t3 * by;
                }
                sum[y][i] += s0, sum[y + 1][i] += s1, sum[y + 2][i] += s2, sum[y + 3][i] += s3;
                if (candidates) {
                    best[y][i] = larger(best[y][i], b0), best[y + 1][i] = larger(best[y + 1][i], b1);
                    best[y + 2][i] = larger(best[y + 2][i], b2), best[y + 3][i] = larger(best[y + 3][i], b3);
                }
            }
}

/* Adds classes [k, end) in one run of rows that begins with the weights u0, u1. */
INLINE void add_classes(const Heard *heard, int32_t k, int32_t end, float u0, float u1, const float *w0,
                        const float *w1, float (*q)[STRIP], int32_t rows, int32_t span, float (*sum)[STRIP],
                        float (*best)[STRIP], const int candidates)
{
    float e[4][STRIP];
    while (k < end) {
        const int32_t m = end - k < 4 ? end - k : 4;
        for (int32_t j = 0; j < m; j++)
            powers(w0, w1, span, u0 * heard->a[k + j] + u1 * heard->c[k + j],
                   u0 * heard->b[k + j] + u1 * heard->d[k + j], e[j]);
        if (m == 4)
            add(sum, best, e, q + k, rows, span, 4, candidates);
        else if (m == 3)
            add(sum, best, e, q + k, rows, span, 3, candidates);
        else if (m == 2)
            add(sum, best, e, q + k, rows, span, 2, candidates);
        else
            add(sum, best, e, q + k, rows, span, 1, candidates);
        k += m;
    }
}

INLINE void divide(const float *best, const float *sum, int32_t span, const int lone, float *__restrict found)
{
    for (int32_t x = 0; x < span; x += LANES, found += LANES, sum += LANES, best += lone ? 0 : LANES)
        for (int32_t i = 0; i < LANES; i++)
            found[i] = lone ? 1 / (1 + sum[i]) : best[i] / sum[i];
}

/* Writes the confidence of n pixels from (x, y) on, and 255 where it is too low. Whole blocks as in mixed_cell.
 * `lone`: the best is 1 and not in the sum. */
INLINE void conclude(const Job *job, int32_t x, int32_t y, int32_t n, const float *best, const float *sum,
                     const int lone)
{
    const int32_t span = (n + LANES - 1) / LANES * LANES;
    const int direct = job->confidence && x + span <= job->out_cols;
    const size_t at = (size_t)y * job->out_cols + x;
    float spare[STRIP];
    float *found = direct ? job->confidence + at : spare;
    divide(best, sum, span, lone, found);
    if (job->confidence && !direct)
        memcpy(job->confidence + at, spare, (size_t)n * sizeof(float));
    if (job->unknown_below > 0)
        for (int32_t i = 0; i < n; i++)
            job->out[at + i] = found[i] < job->unknown_below ? 255 : job->out[at + i];
}

/* Row by row: as one block it becomes a string instruction, which is slow to start. */
INLINE void clear(float (*sum)[STRIP])
{
    for (int32_t r = 0; r < RUN; r++)
        memset(sum[r], 0, sizeof sum[r]);
}

/* Confidence by sequences, for one strip of a cell whose rows are [from, to). The small terms are added first. */
INLINE void strip_by_runs(const Job *job, const Box *box, int32_t from, int32_t to, const Heard *heard)
{
    const int32_t width = box->x_end - box->x, span = (width + LANES - 1) / LANES * LANES;
    const float *w0 = job->wx0 + box->x, *w1 = job->wx1 + box->x;
    const float step = to - from > 1 ? (job->wy1[to - 1] - job->wy1[from]) / (float)(to - from - 1) : 0;
    const int lone = heard->candidates == 1; /* its sequence is 1 everywhere */
    const int32_t rest = heard->n - heard->candidates;
    float q[MAX_CLASSES][STRIP], sum[RUN][STRIP], best[RUN][STRIP];
    for (int32_t k = 0; k < heard->n - lone; k++)
        powers(w0, w1, span, (heard->c[k] - heard->a[k]) * step, (heard->d[k] - heard->b[k]) * step, q[k]);

    for (int32_t y = from; y < box->y_end; y += RUN) {
        const int32_t rows = to - y < RUN ? to - y : RUN;
        const float u0 = job->wy0[y], u1 = job->wy1[y];
        if (y + rows <= box->y)
            continue; /* another band's */
        for (int32_t r = 0; job->confidence && r < rows; r++) /* each row lies in other pages: called for early */
            for (int32_t x = 0; x < width; x += LANES)
                PREFETCH(job->confidence + (size_t)(y + r) * job->out_cols + box->x + x);
        clear(sum);
        add_classes(heard, 0, rest, u0, u1, w0, w1, q, rows, span, sum, best, 0);
        if (!lone) {
            clear(best);
            add_classes(heard, rest, heard->n, u0, u1, w0, w1, q, rows, span, sum, best, 1);
        }
        for (int32_t r = y < box->y ? box->y - y : 0; r < rows && y + r < box->y_end; r++)
            if (lone)
                conclude(job, box->x, y + r, width, NULL, sum[r], 1);
            else
                conclude(job, box->x, y + r, width, best[r], sum[r], 0);
    }
}

/* Confidence of a strip in a steep or short cell: one power a pixel and class, relative to the pixel's best candidate. */
INLINE void strip_by_pixels(const Job *job, const Box *box, const Heard *heard)
{
    const int32_t width = box->x_end - box->x, span = (width + LANES - 1) / LANES * LANES;
    const float *w0 = job->wx0 + box->x, *w1 = job->wx1 + box->x;
    const float cut = job->cut;
    float best[STRIP], sum[STRIP], one[STRIP];
    for (int32_t i = 0; i < span; i++)
        one[i] = 1;
    for (int32_t y = box->y; y < box->y_end; y++) {
        const float u0 = job->wy0[y], u1 = job->wy1[y];
        for (int32_t i = 0; i < span; i++)
            best[i] = -FLT_MAX, sum[i] = 0;
        for (int32_t k = heard->n - heard->candidates; k < heard->n; k++) {
            const float l = u0 * heard->a[k] + u1 * heard->c[k], r = u0 * heard->b[k] + u1 * heard->d[k];
            for (int32_t i = 0; i < span; i++) {
                const float t = w0[i] * l + w1[i] * r;
                best[i] = t > best[i] ? t : best[i];
            }
        }
        for (int32_t k = 0; k < heard->n; k++) {
            const float l = u0 * heard->a[k] + u1 * heard->c[k], r = u0 * heard->b[k] + u1 * heard->d[k];
            for (int32_t i = 0; i < span; i++) {
                const float t = (w0[i] * l + w1[i] * r) - best[i];
                sum[i] += masked(power(t), t >= cut);
            }
        }
        conclude(job, box->x, y, width, one, sum, 0);
    }
}

/* A cell with confidence; `rows` are its own first row and the next cell's, of which `box` may hold a part. */
INLINE void scored_cell(const Job *job, const Box *box, const int32_t *rows, Corners *v, const uint8_t *winners,
                        int64_t *counts)
{
    const int binary = job->classes == 1;
    const int32_t classes = binary ? 2 : job->classes;
    const int late = job->unknown_below > 0; /* labels are counted when all are known */
    uint8_t sides[4], kept[MAX_CLASSES];
    int32_t m = 1;
    Heard heard;
    kept[0] = winners[0];
    if (winners[0] == winners[1] && winners[0] == winners[2] && winners[0] == winners[3]) {
        fill(job, box, job->labels[winners[0]], late ? NULL : counts);
    } else {
        m = candidates(v, job->classes, winners, kept);
        mixed_cell(job, box, v, kept, m, late ? NULL : counts);
    }
    if (binary) { /* sigmoid(s) is the softmax of 0 and s, whatever the threshold */
        v->a[1] = v->a[0], v->b[1] = v->b[0], v->c[1] = v->c[0], v->d[1] = v->d[0];
        v->a[0] = v->b[0] = v->c[0] = v->d[0] = 0;
        sides[0] = v->a[1] > 0, sides[1] = v->b[1] > 0, sides[2] = v->c[1] > 0, sides[3] = v->d[1] > 0;
        winners = sides;
        m = candidates(v, classes, winners, kept);
    }
    hear(v, classes, winners, kept, m, job->cut, &heard);
    for (Box strip = *box; strip.x < box->x_end; strip.x += STRIP) {
        strip.x_end = box->x_end - strip.x < STRIP ? box->x_end : strip.x + STRIP;
        if (heard.steep || rows[1] - rows[0] < SHORT)
            strip_by_pixels(job, &strip, &heard);
        else
            strip_by_runs(job, &strip, rows[0], rows[1], &heard);
    }
    if (late && counts)
        for (int32_t y = box->y; y < box->y_end; y++)
            tally(job->out + (size_t)y * job->out_cols + box->x, box->x_end - box->x, counts);
}

/* What a caller must have been written for: version and record size; a stale build is refused. */
EXPORT int32_t edgeseg_decode_abi(void)
{
    return ABI << 16 | (int32_t)sizeof(Job);
}

/* Writes rows [first, last). `scratch` holds 2 * in_cols bytes; `counts` 256 sums to add to, or NULL. */
EXPORT CLONES void edgeseg_decode_rows(const Job *job, int32_t first, int32_t last, uint8_t *scratch, int64_t *counts)
{
    const int32_t right = job->in_cols > 1, down = job->in_rows > 1;
    uint8_t *upper = scratch, *lower = scratch + job->in_cols;
    int32_t upper_row = -1, lower_row = -1;
    uint8_t kept[MAX_CLASSES];
    Corners corners;

    for (int32_t cy = 0; cy < job->y_cells; cy++) {
        Box box = {0, 0, job->y_start[cy], job->y_start[cy + 1]};
        const int32_t iy = job->y_index[cy];
        box.y = box.y > first ? box.y : first;
        box.y_end = box.y_end < last ? box.y_end : last;
        if (box.y >= box.y_end)
            continue;
        if (cy + 1 < job->y_cells)
            call_for(job, box.y_end, job->y_start[cy + 2] < last ? job->y_start[cy + 2] : last);
        if (lower_row == iy) {
            uint8_t *swap = upper;
            upper = lower, lower = swap;
            lower_row = upper_row, upper_row = iy;
        }
        if (upper_row != iy)
            best_classes(job, upper_row = iy, upper);
        if (lower_row != iy + down)
            best_classes(job, lower_row = iy + down, lower);

        for (int32_t cx = 0; cx < job->x_cells;) {
            const int32_t ix = job->x_index[cx];
            const uint8_t winners[4] = {upper[ix], upper[ix + right], lower[ix], lower[ix + right]};
            box.x = job->x_start[cx];
            if (!job->scored && winners[0] == winners[1] && winners[0] == winners[2] && winners[0] == winners[3]) {
                const uint8_t label = job->labels[winners[0]];
                for (cx++; cx < job->x_cells; cx++) { /* its like to the right, in one fill */
                    const int32_t i = job->x_index[cx];
                    const uint8_t w = upper[i];
                    if (w != upper[i + right] || w != lower[i] || w != lower[i + right] || job->labels[w] != label)
                        break;
                }
                box.x_end = job->x_start[cx];
                fill(job, &box, label, counts);
                continue;
            }
            box.x_end = job->x_start[++cx];
            gather(job, (size_t)iy * job->in_cols + ix, (size_t)right, (size_t)down * job->in_cols, &corners);
            if (job->scored) {
                scored_cell(job, &box, job->y_start + cy, &corners, winners, counts);
            } else {
                const int32_t m = candidates(&corners, job->classes, winners, kept);
                mixed_cell(job, &box, &corners, kept, m, counts);
            }
        }
    }
}

/* The Windows linker is told to export this name for any extension module. Nobody imports it. */
EXPORT void *PyInit__decode(void)
{
    return NULL;
}
