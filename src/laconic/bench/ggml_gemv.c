/* Times a product of one vector and a matrix in a format of ggml, with ggml's own kernels.

   ggml_gemv FORMAT N_OUT N_IN THREADS: for every line on standard input the median seconds of some products on standard
   output. The vector is quantized anew each time, as inference does. Rows go to threads in equal shares. */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUPER = 256, Q8_K_BYTES = 4 + 256 + 32, REPEATS = 5 };

typedef void dot(int n, float *s, size_t bs, const void *x, size_t bx, const void *y, size_t by, int nrc);

void ggml_cpu_init(void);
void quantize_row_q8_K(const float *x, void *y, int64_t n);
dot ggml_vec_dot_q4_K_q8_K, ggml_vec_dot_q2_K_q8_K, ggml_vec_dot_iq2_xxs_q8_K;
void ggml_gemv_q4_K_8x8_q8_K(int n, float *s, size_t bs, const void *x, const void *y, int rows, int columns);

/* bytes of a super-block of 256 weights; where its float16 scales lie, which must be finite; rows that are interleaved */
struct format { const char *name; int bytes, scales_at, n_scales, rows; dot *vec_dot; };

static const struct format FORMATS[] = {
    {"q4_K", 144, 0, 2, 1, ggml_vec_dot_q4_K_q8_K},
    {"q4_K repacked", 144 * 8, 0, 16, 8, NULL},
    {"q2_K", 84, 80, 2, 1, ggml_vec_dot_q2_K_q8_K},
    {"iq2_xxs", 66, 0, 1, 1, ggml_vec_dot_iq2_xxs_q8_K},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const struct format *f = NULL;
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        if (!strcmp(FORMATS[i].name, argv[1])) f = &FORMATS[i];
    const int n_out = atoi(argv[2]), n_in = atoi(argv[3]), threads = atoi(argv[4]);
    if (!f || n_out % f->rows || n_in % SUPER) return 2;
    const size_t row_bytes = (size_t)n_in / SUPER * f->bytes, n_rows = n_out / f->rows; /* rows: of interleaved ones */
    uint8_t *weights = aligned_alloc(64, (row_bytes * n_rows + 63) / 64 * 64);
    uint32_t seed = 1;
    for (size_t i = 0; i < row_bytes * n_rows; i++) weights[i] = (seed = seed * 1664525u + 1013904223u) >> 24;
    const uint16_t scale = 0x2c00;
    for (size_t at = 0; at < row_bytes * n_rows; at += f->bytes)
        for (int i = 0; i < f->n_scales; i++) memcpy(weights + at + f->scales_at + 2 * i, &scale, 2);
    float *x = malloc(sizeof(float) * n_in), *y = malloc(sizeof(float) * n_out);
    for (int i = 0; i < n_in; i++) x[i] = (float)(i * 37 % 101) / 50 - 1;
    void *vector = aligned_alloc(64, ((size_t)n_in / SUPER * Q8_K_BYTES + 63) / 64 * 64);
    ggml_cpu_init();
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n') continue;
        double seconds[REPEATS];
        for (int k = 0; k < REPEATS; k++) {
            const double start = now();
            quantize_row_q8_K(x, vector, n_in);
#pragma omp parallel num_threads(threads)
            {
                const size_t t = omp_get_thread_num(), first = n_rows * t / threads, end = n_rows * (t + 1) / threads;
                if (!f->vec_dot)
                    ggml_gemv_q4_K_8x8_q8_K(n_in, y + first * f->rows, n_out, weights + first * row_bytes, vector, 1,
                                            (int)(end - first) * f->rows);
                else
                    for (size_t r = first; r < end; r++)
                        f->vec_dot(n_in, y + r, 0, weights + r * row_bytes, 0, vector, 0, 1);
            }
            seconds[k] = now() - start;
        }
        qsort(seconds, REPEATS, sizeof *seconds, ascending);
        printf("%.9f\n", seconds[REPEATS / 2]);
        fflush(stdout);
    }
    return y[0] != y[0];
}
