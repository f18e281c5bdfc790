/* Each INIT macro initialises an automatic and a static object; all but struct_size is zero. */
#include <moe.h>
#include <moe.h>

#include "init_macros.h"

int main(void) { return check_init_macros(); }
