// C[M, N] int32 = A[M, K] int8 @ B[N, K] int8, K a multiple of 32, in tiles of 32 x 16 x 32: two
// buffers filled by cp.async, fragments by ldmatrix, products by mma. Written for tests of the
// emulator; gemm.ptx is what NVRTC 13.0.88 makes of it with
//   --gpu-architecture=compute_80 --fmad=false -default-device
typedef signed char s8;

__device__ __forceinline__ unsigned shared_address(const void* at) {
  return (unsigned)__cvta_generic_to_shared(at);
}

__device__ __forceinline__ void copy16(void* to, const s8* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(inside ? 16 : 0));
}

extern "C" __global__ void __launch_bounds__(64)
gemm(const s8* A, const s8* B, int* C, int M, int N, int K) {
  __shared__ __align__(16) s8 a_tile[2][32][48];  // rows of 32, padded against bank conflicts
  __shared__ __align__(16) s8 b_tile[2][16][48];
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int first_row = blockIdx.y * 32, first_column = blockIdx.x * 16;
  int row = thread / 2, part = thread % 2 * 16;
  int sums[2][4] = {};

  auto fetch = [&](int k, int buffer) {
    bool inside = first_row + row < M;
    copy16(&a_tile[buffer][row][part], A + (inside ? (first_row + row) * K + k + part : 0), inside);
    if (thread < 32) {
      inside = first_column + row < N;
      copy16(&b_tile[buffer][row][part], B + (inside ? (first_column + row) * K + k + part : 0),
             inside);
    }
    asm volatile("cp.async.commit_group;");
  };

  fetch(0, 0);
#pragma unroll 1
  for (int k = 0, buffer = 0; k < K; k += 32, buffer ^= 1) {
    if (k + 32 < K) {
      fetch(k + 32, buffer ^ 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    unsigned a[4], b[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(&a_tile[buffer][warp * 16 + lane % 16][lane / 16 * 16])));
    for (int n = 0; n < 2; n++) {
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(b[0]), "=r"(b[1])
                   : "r"(shared_address(&b_tile[buffer][n * 8 + lane % 8][lane / 8 % 2 * 16])));
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
          "{%8, %9}, {%0, %1, %2, %3};"
          : "+r"(sums[n][0]), "+r"(sums[n][1]), "+r"(sums[n][2]), "+r"(sums[n][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __syncthreads();
  }
  for (int n = 0; n < 2; n++)
    for (int i = 0; i < 4; i++) {
      int r = first_row + warp * 16 + lane / 4 + i / 2 * 8;
      int c = first_column + n * 8 + lane % 4 * 2 + i % 2;
      if (r < M && c < N) C[r * N + c] = sums[n][i];
    }
}
