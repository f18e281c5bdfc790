// A libcuda.so.1 with no GPU behind it: memory is the host's, a launch does nothing, every call is written down.
//
// Environment: MOCK_LOG, a file with one line a call; MOCK_KERNELS, "name:bytes of its parameter,..." of the first
// library that is loaded; MOCK_VERSION, MOCK_DEVICES, MOCK_CAPABILITY; MOCK_FAIL, "call:code" fails that call;
// MOCK_MULTIPROCESSORS; MOCK_CAPTURING=1, streams are being captured; MOCK_FAULT=what, every launch records that fault where the last eight
// bytes of its parameter point to; MOCK_BAD_POINTER, an address that the GPU cannot reach.
// A symbol is left out by compiling with -D<symbol>=<another name>.
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *handle;

// tests/emulator has it: a launch then runs the kernel.
__attribute__((weak)) int emulate(const char *name, const unsigned *grid, const unsigned *block, unsigned shared,
                                  unsigned cluster, const void *parameter, size_t bytes);

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}

static void note(const char *format, ...) {
  char line[16384];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line - 1, format, list);
  va_end(list);
  if (length > (int)sizeof line - 2) length = sizeof line - 2;
  line[length++] = '\n';
  int file = open(setting("MOCK_LOG", "/dev/null"), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (write(file, line, length) != length) abort();
  close(file);
}

static int failing(const char *call) {
  const char *fail = setting("MOCK_FAIL", "");
  size_t length = strlen(call);
  return strncmp(fail, call, length) == 0 && fail[length] == ':' ? atoi(fail + length + 1) : 0;
}

// A call that is written down by its name alone, does `body` and succeeds.
#define CALL(name, parameters, body)                                                                                   \
  int name parameters {                                                                                                \
    note("%s", #name);                                                                                                 \
    if (failing(#name)) return failing(#name);                                                                         \
    body;                                                                                                              \
    return 0;                                                                                                          \
  }

enum { COOPERATIVE = 2, CLUSTER_DIMENSION = 4, INVALID_VALUE = 1, MEMORY_FAULT = 700, MAX_KERNELS = 1024 };

static struct kernel {
  char name[128];
  size_t parameter;
} kernels[MAX_KERNELS];
static unsigned num_kernels, libraries;
static char primary;
static _Thread_local handle stack[16];
static _Thread_local int depth;

CALL(cuInit, (unsigned flags), (void)flags)
CALL(cuDriverGetVersion, (int *version), *version = atoi(setting("MOCK_VERSION", "13000")))
CALL(cuDeviceGetCount, (int *count), *count = atoi(setting("MOCK_DEVICES", "1")))
CALL(cuDeviceGet, (int *device, int ordinal), *device = ordinal)
CALL(cuDevicePrimaryCtxRetain, (handle *context, int device), ((void)device, *context = &primary))
CALL(cuDevicePrimaryCtxRelease_v2, (int device), (void)device)

int cuGetErrorName(int code, const char **name) {
  *name = code == MEMORY_FAULT ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
  return *name ? 0 : INVALID_VALUE;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = atoi(setting("MOCK_CAPABILITY", "90"));
  (void)device;
  switch (attribute) {
  case 16: *value = atoi(setting("MOCK_MULTIPROCESSORS", "132")); break;
  case 75: *value = capability / 10; break;
  case 76: *value = capability % 10; break;
  case 97: *value = 232448; break;
  default: return INVALID_VALUE;
  }
  return 0;
}

CALL(cuCtxGetCurrent, (handle *context), *context = depth ? stack[depth - 1] : NULL)
CALL(cuCtxPushCurrent_v2, (handle context), stack[depth++] = context)
CALL(cuCtxPopCurrent_v2, (handle *context), *context = stack[--depth])

int cuLibraryLoadData(handle *library, const void *code, handle jit, handle jit_values, unsigned num_jit,
                      handle options, handle values, unsigned num_options) {
  (void)code, (void)jit, (void)jit_values, (void)num_jit, (void)options, (void)values, (void)num_options;
  note("cuLibraryLoadData");
  if (failing("cuLibraryLoadData")) return failing("cuLibraryLoadData");
  *library = (handle)(uintptr_t)++libraries;
  if (libraries > 1) return 0;
  char *list = strdup(setting("MOCK_KERNELS", "")), *rest = list, *entry;
  while ((entry = strsep(&rest, ",")) != NULL && num_kernels < MAX_KERNELS)
    num_kernels += sscanf(entry, "%127[^:]:%zu", kernels[num_kernels].name, &kernels[num_kernels].parameter) == 2;
  free(list);
  return 0;
}
CALL(cuLibraryUnload, (handle library), (void)library)

int cuLibraryGetKernelCount(unsigned *count, handle library) {
  *count = library == (handle)1 ? num_kernels : 0;
  return 0;
}
int cuLibraryEnumerateKernels(handle *list, unsigned count, handle library) {
  (void)library;
  for (unsigned i = 0; i < count; ++i) list[i] = &kernels[i];
  return 0;
}
int cuKernelGetName(const char **name, struct kernel *kernel) { return *name = kernel->name, 0; }
int cuKernelGetFunction(handle *function, handle kernel) { return *function = kernel, 0; }
int cuFuncGetAttribute(int *value, int attribute, handle kernel) {
  (void)attribute, (void)kernel;
  return *value = 1024, 0;
}
int cuFuncSetAttribute(struct kernel *kernel, int attribute, int value) {
  note("cuFuncSetAttribute kernel=%s attribute=%d value=%d", kernel->name, attribute, value);
  return 0;
}
int cuFuncGetParamInfo(struct kernel *kernel, size_t index, size_t *offset, size_t *size) {
  *offset = 0, *size = kernel->parameter;
  return index ? INVALID_VALUE : 0;
}
CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *blocks, handle function, int threads, size_t shared),
     ((void)function, (void)threads, (void)shared, *blocks = 2))

struct attribute {
  int id;
  char padding[4];
  union {
    int number[16];
  } value;
};
struct config {
  unsigned grid[3], block[3], shared;
  handle stream;
  struct attribute *attributes;
  unsigned num_attributes;
};

int cuLaunchKernelEx(const struct config *config, struct kernel *kernel, void **parameters, void **extra) {
  char bytes[8200] = "", attributes[128] = "";
  const unsigned char *parameter = parameters[0];
  (void)extra;
  for (size_t i = 0; i < kernel->parameter && i < 4096; ++i) sprintf(bytes + 2 * i, "%02x", parameter[i]);
  for (unsigned i = 0; i < config->num_attributes; ++i)
    sprintf(attributes + strlen(attributes), "%d:%d,", config->attributes[i].id,
            config->attributes[i].value.number[0]);
  note("cuLaunchKernelEx kernel=%s grid=%u,%u,%u block=%u,%u,%u shared=%u stream=%p attributes=%s context=%s params=%s",
       kernel->name, config->grid[0], config->grid[1], config->grid[2], config->block[0], config->block[1],
       config->block[2], config->shared, config->stream, attributes,
       depth && stack[depth - 1] == &primary ? "primary" : "another", bytes);
  if (getenv("MOCK_FAULT")) {
    int32_t *report;
    memcpy(&report, parameter + kernel->parameter - sizeof report, sizeof report);
    if (report) *report = atoi(getenv("MOCK_FAULT"));
  }
  if (emulate) {
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->num_attributes; ++i)
      // A cooperative grid meets as the blocks of one cluster do.
      if (config->attributes[i].id == CLUSTER_DIMENSION) cluster = config->attributes[i].value.number[0];
      else if (config->attributes[i].id == COOPERATIVE) cluster = config->grid[0];
    emulate(kernel->name, config->grid, config->block, config->shared, cluster, parameter, kernel->parameter);
  }
  return failing("cuLaunchKernelEx");
}

int cuTensorMapEncodeTiled(uint64_t *map, int dtype, unsigned rank, void *data, const uint64_t *sizes,
                           const uint64_t *pitches, const unsigned *box, const unsigned *strides, int interleave,
                           int swizzle, int promotion, int fill) {
  (void)dtype, (void)strides, (void)interleave, (void)promotion, (void)fill;
  note("cuTensorMapEncodeTiled rank=%u data=%p pitch=%llu box=%ux%u swizzle=%d", rank, data,
       (unsigned long long)pitches[0], box[0], box[1], swizzle);
  memset(map, 0, 128);
  map[0] = (uintptr_t)data, map[1] = rank, map[2] = box[0], map[3] = box[1];
  memcpy(map + 4, sizes, rank * sizeof *sizes);
  memcpy(map + 8, pitches, (rank - 1) * sizeof *pitches);
  if ((uintptr_t)data % 16 || pitches[0] % 16 || (rank > 2 && pitches[1] % 16)) return INVALID_VALUE;
  return failing("cuTensorMapEncodeTiled");
}

int cuMemsetD8Async(uintptr_t pointer, unsigned char value, size_t count, handle stream) {
  note("cuMemsetD8Async value=%u count=%zu stream=%p", value, count, stream);
  if (pointer > 1 << 20) memset((void *)pointer, value, count);
  return failing("cuMemsetD8Async");
}

int cuEventRecord(handle event, handle stream) {
  note("cuEventRecord event=%p stream=%p", event, stream);
  return failing("cuEventRecord");
}
int cuStreamWaitEvent(handle stream, handle event, unsigned flags) {
  note("cuStreamWaitEvent stream=%p event=%p flags=%u", stream, event, flags);
  return failing("cuStreamWaitEvent");
}
CALL(cuStreamIsCapturing, (handle stream, int *status), ((void)stream, *status = atoi(setting("MOCK_CAPTURING", "0"))))
CALL(cuMemAlloc_v2, (uintptr_t * pointer, size_t bytes), *pointer = (uintptr_t)malloc(bytes))
CALL(cuMemFree_v2, (uintptr_t pointer), free((void *)pointer))
CALL(cuMemcpyDtoHAsync_v2, (void *to, uintptr_t from, size_t bytes, handle stream),
     ((void)stream, memcpy(to, (void *)from, bytes)))
CALL(cuMemcpyHtoDAsync_v2, (uintptr_t to, const void *from, size_t bytes, handle stream),
     ((void)stream, memcpy((void *)to, from, bytes)))
CALL(cuStreamSynchronize, (handle stream), (void)stream)

int cuPointerGetAttribute(void *value, int attribute, uintptr_t pointer) {
  (void)attribute;
  if (pointer == strtoul(setting("MOCK_BAD_POINTER", "0"), NULL, 0)) return INVALID_VALUE;
  return *(uintptr_t *)value = pointer, 0;
}
