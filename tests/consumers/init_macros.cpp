// The same uses in C++17; and the binding, included twice.
#include <moe.h>
#include <moe.h>
#include <moe.hpp>
#include <moe.hpp>

#include "init_macros.h"

int main() { return check_init_macros(); }
