// Stands in for kernels/hopper_wgmma_64.cuh: the stand-in of wgmma has any number of columns.
#pragma once

#include "hopper_wgmma.cuh"
