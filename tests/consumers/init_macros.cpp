// The same uses in C++17; and the binding, included twice.
#include <moe.h>
#include <moe.h>
#include <moe.hpp>
#include <moe.hpp>
#include <moe_layer.hpp>
#include <moe_layer.hpp>

#include "init_macros.h"

int main() { return check_init_macros(); }
