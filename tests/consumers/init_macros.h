/* init_uses.inc is generated from the installed header: one USE(type, init, sized) a macro. */
#include <stdio.h>
#include <string.h>

#define USE(type, init, sized) static const type static_##type = init;
#include "init_uses.inc"
#undef USE

/* struct_size is `size`, where there is one, and a nested tensor's is its own; what else is not zero is a defect. */
static int check_bytes(const char *name, const void *object, size_t size, int sized) {
  const unsigned char *bytes = (const unsigned char *)object;
  size_t place = 0;
  unsigned int first = 0;
  if (sized) {
    memcpy(&first, bytes, sizeof first);
    if (first != size) return printf("%s: struct_size is %u, sizeof %zu\n", name, first, size), 1;
    place = sizeof first;
  }
  for (; place < size; place++) {
    const moe_tensor_t tensor = MOE_TENSOR_INIT;
    if (place + sizeof tensor <= size && memcmp(bytes + place, &tensor, sizeof tensor) == 0) {
      place += sizeof tensor - 1;
    } else if (bytes[place] != 0) {
      return printf("%s: byte %zu is %d, not 0\n", name, place, bytes[place]), 1;
    }
  }
  return 0;
}

static int check_init_macros(void) {
  int wrong = 0, uses = 0;
#define USE(type, init, sized)                                            \
  {                                                                       \
    const type automatic = init;                                          \
    wrong += check_bytes(#init, &automatic, sizeof automatic, sized);     \
    wrong += check_bytes(#init, &static_##type, sizeof automatic, sized); \
    uses++;                                                               \
  }
#include "init_uses.inc"
  printf("%d INIT macros, %d defects\n", uses, wrong);
  return wrong != 0 || uses == 0;
}
