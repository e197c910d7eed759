/* A CUDA runtime and driver with one device that computes nothing, to be preloaded (LD_PRELOAD) before PyTorch.

   PyTorch's fake tensors know shapes and devices and hold no data, but autograd runs the backward pass of tensors on
   a CUDA device in a thread of that device, which asks the runtime for the device, its context and its streams. These
   functions answer it. None is called with memory that anyone reads. The library has the driver's name as well
   (-soname libcuda.so.1), so that the loader takes it for the driver. */

typedef int Error; /* 0 = success, in both interfaces */

/* The runtime. */
Error cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Error cudaGetDevice(int *device) { *device = 0; return 0; }
Error cudaSetDevice(int device) { return device == 0 ? 0 : 101; } /* cudaErrorInvalidDevice */

/* The first members of cudaDeviceProp (CUDA 12 and 13), as far as PyTorch asks: whether bf16 is computed. */
typedef struct {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    unsigned long memory, shared_memory;
    int registers, warp_size;
    unsigned long pitch;
    int threads, threads_dim[3], grid_size[3];
    unsigned long constant_memory;
    int major, minor;
} Properties;

Error cudaGetDeviceProperties(Properties *device, int number) {
    device->major = 9; /* Hopper */
    device->minor = 0;
    device->warp_size = 32;
    return 0;
}

Error cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
Error cudaDeviceSynchronize(void) { return 0; }
Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
Error cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = stream; return 0; }
Error cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Error cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
Error cudaStreamQuery(void *stream) { return 0; }
Error cudaStreamSynchronize(void *stream) { return 0; }
Error cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
Error cudaThreadExchangeStreamCaptureMode(int *mode) { return 0; }
Error cudaEventCreateWithFlags(void **event, unsigned flags) { *event = event; return 0; }
Error cudaEventRecord(void *event, void *stream) { return 0; }
Error cudaEventQuery(void *event) { return 0; }
Error cudaEventSynchronize(void *event) { return 0; }
Error cudaEventDestroy(void *event) { return 0; }
Error cudaGetLastError(void) { return 0; }
Error cudaPeekAtLastError(void) { return 0; }
const char *cudaGetErrorName(Error error) { return "fake"; }
const char *cudaGetErrorString(Error error) { return "an error of tests/fake_cuda/stub.c"; }

/* The driver. */
Error cuInit(unsigned flags) { return 0; }
Error cuDeviceGetCount(int *count) { *count = 1; return 0; }
Error cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
Error cuGetErrorString(Error error, const char **text) { *text = "an error of tests/fake_cuda/stub.c"; return 0; }
