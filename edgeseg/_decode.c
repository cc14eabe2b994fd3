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
#endif

/* One clone per instruction set, chosen by the loader. Needs ifunc: glibc on x86-64. Helpers are forced inline
 * because only what is inlined into the clone is compiled for it. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define ABI 1
#define MAX_CLASSES 256
#define LANES 16  /* pixels per block; tables are padded by this many entries */
#define CHUNK 128 /* pixels per pass where scores are kept */
#define LIMIT 1e38f

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
    float cut;             /* terms exp(t), t < cut, count as 0 */
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

/* exp(t) for t <= 0, absolute error about 1e-7: 2^k * 2^f, k by the round-to-integer constant. Callers drop t < cut. */
INLINE float exp_negative(float t)
{
    const float x = t * 1.44269504f;
    const float shifted = x + 12582912.0f;
    const float f = x - (shifted - 12582912.0f);
    float p = 0.0013264727f;
    uint32_t bits;
    float scale;
    p = p * f + 0.009671513f;
    p = p * f + 0.055507336f;
    p = p * f + 0.24022242f;
    p = p * f + 0.693147f;
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
    for (int32_t x = 0; x < n; x += LANES) {
        for (int32_t i = x; i < x + LANES; i++) {
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
    for (int32_t x = 0; x < n; x += LANES)
        for (int32_t i = x; i < x + LANES; i++)
            dst[i] = (uint8_t)(w0[i] * left + w1[i] * right > threshold ? above : below);
}

/* A cell whose corners disagree: only classes that can still win in a row are evaluated in it. */
INLINE void mixed_cell(const Job *job, const Box *box, const Corners *v, const uint8_t *winners, int64_t *counts)
{
    const int32_t width = box->x_end - box->x;
    const int32_t blocks = (width + LANES - 1) / LANES * LANES;
    const int binary = job->classes == 1;
    const float *w0 = job->wx0 + box->x, *w1 = job->wx1 + box->x;
    float a[MAX_CLASSES], b[MAX_CLASSES], c[MAX_CLASSES], d[MAX_CLASSES], scale = 0;
    float left[MAX_CLASSES], right[MAX_CLASSES];
    int32_t label[MAX_CLASSES], row_label[MAX_CLASSES];
    uint8_t kept[MAX_CLASSES];
    int32_t m = 2;
    if (binary) { /* background as a class whose score is the threshold everywhere */
        a[0] = b[0] = c[0] = d[0] = job->threshold;
        a[1] = v->a[0], b[1] = v->b[0], c[1] = v->c[0], d[1] = v->d[0];
        label[0] = job->labels[0], label[1] = job->labels[1];
    } else {
        m = candidates(v, job->classes, winners, kept);
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

/* A cell with confidence: every class counts, but one far below an end's winner along the row adds nothing. */
INLINE void scored_cell(const Job *job, const Box *box, const Corners *v, const uint8_t *winners, int64_t *counts)
{
    const int binary = job->classes == 1;
    const int uniform = winners[0] == winners[1] && winners[0] == winners[2] && winners[0] == winners[3];
    float left[MAX_CLASSES], right[MAX_CLASSES], scale = 0;
    uint8_t kept[MAX_CLASSES], heard[MAX_CLASSES];
    int32_t m = 1;
    kept[0] = binary ? 0 : winners[0];
    if (!binary && !uniform)
        m = candidates(v, job->classes, winners, kept);
    for (int32_t k = 0; k < job->classes; k++)
        scale = largest(largest(largest(largest(scale, v->a[k]), v->b[k]), v->c[k]), v->d[k]);
    const float reach = 1e-4f - job->cut + slack_for(scale);

    for (int32_t y = box->y; y < box->y_end; y++) {
        const float u0 = job->wy0[y], u1 = job->wy1[y];
        int32_t at_left = kept[0], at_right = kept[0], n = 0;
        for (int32_t k = 0; k < job->classes; k++) {
            left[k] = u0 * v->a[k] + u1 * v->c[k];
            right[k] = u0 * v->b[k] + u1 * v->d[k];
        }
        for (int32_t i = 1; i < m; i++) {
            const int32_t k = kept[i];
            at_left = left[k] > left[at_left] ? k : at_left;
            at_right = right[k] > right[at_right] ? k : at_right;
        }
        const float l0 = left[at_left] - reach, r0 = right[at_left] - reach;
        const float l1 = left[at_right] - reach, r1 = right[at_right] - reach;
        for (int32_t k = 0; k < job->classes; k++) {
            heard[n] = (uint8_t)k;
            n += !(((left[k] < l0) & (right[k] < r0)) | ((left[k] < l1) & (right[k] < r1)));
        }
        if (m == 1 && n == 1 && !binary)
            n = 0; /* the winner alone: confidence 1 */

        for (int32_t x = box->x; x < box->x_end; x += CHUNK) {
            const int32_t width = box->x_end - x < CHUNK ? box->x_end - x : CHUNK;
            const int32_t span = (width + LANES - 1) / LANES * LANES;
            const float *w0 = job->wx0 + x, *w1 = job->wx1 + x;
            const size_t at = (size_t)y * job->out_cols + x;
            float best[CHUNK], others[CHUNK];
            int32_t winner[CHUNK];
            for (int32_t i = 0; i < span; i++) {
                best[i] = w0[i] * left[kept[0]] + w1[i] * right[kept[0]];
                winner[i] = kept[0];
                others[i] = 0;
            }
            for (int32_t j = 1; j < m; j++) {
                const float l = left[kept[j]], r = right[kept[j]];
                const int32_t k = kept[j];
                for (int32_t i = 0; i < span; i++) {
                    const float s = w0[i] * l + w1[i] * r;
                    winner[i] = s > best[i] ? k : winner[i];
                    best[i] = s > best[i] ? s : best[i];
                }
            }
            if (binary)
                for (int32_t i = 0; i < span; i++) {
                    const float t = best[i] > 0 ? -best[i] : best[i];
                    others[i] = masked(exp_negative(t), t >= job->cut);
                    winner[i] = uniform ? winners[0] : best[i] > job->threshold;
                }
            else
                for (int32_t j = 0; j < n; j++) {
                    const int32_t k = heard[j];
                    const float l = left[k], r = right[k], cut = job->cut;
                    for (int32_t i = 0; i < span; i++) {
                        const float t = (w0[i] * l + w1[i] * r) - best[i];
                        others[i] += masked(exp_negative(t), (t >= cut) & (winner[i] != k));
                    }
                }
            for (int32_t i = 0; i < span; i++)
                others[i] = 1.0f / (1.0f + others[i]);
            if (job->confidence)
                memcpy(job->confidence + at, others, (size_t)width * sizeof(float));
            for (int32_t i = 0; i < width; i++)
                job->out[at + i] = others[i] < job->unknown_below ? 255 : job->labels[winner[i]];
            if (counts)
                tally(job->out + at, width, counts);
        }
    }
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
    Corners corners;

    for (int32_t cy = 0; cy < job->y_cells; cy++) {
        Box box = {0, 0, job->y_start[cy], job->y_start[cy + 1]};
        const int32_t iy = job->y_index[cy];
        box.y = box.y > first ? box.y : first;
        box.y_end = box.y_end < last ? box.y_end : last;
        if (box.y >= box.y_end)
            continue;
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
            if (job->scored)
                scored_cell(job, &box, &corners, winners, counts);
            else
                mixed_cell(job, &box, &corners, winners, counts);
        }
    }
}

/* The Windows linker is told to export this name for any extension module. Nobody imports it. */
EXPORT void *PyInit__decode(void)
{
    return NULL;
}
