"""A layer with shared experts, forward and backward, on a GPU context of the mock driver with a second stream: run by
test_cuda_host.py in a process of its own. layer_streams.cpp does the same from C++."""

import numpy as np

import libmoe
import mock_driver

T, D, F, E, K, G = 8, 16, 8, 4, 2, 8
STREAM, SIDE = 0x50, libmoe.SideStream(0x60, 0xF0, 0x70)


def main():
    shapes = {"gate": (E, D), "w1": (E, 2 * F, D), "w2": (E, D, F), "shared_w1": (2 * G, D), "shared_w2": (D, G), "shared_gate": (1, D)}
    with mock_driver.Context() as ctx:
        layer = libmoe.MoELayer(ctx, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, K)
        x = np.zeros((T, D), np.float32)
        out = layer.forward(x, stream=STREAM, side=SIDE)
        layer.backward(x, out.saved, stream=STREAM, side=SIDE)


if __name__ == "__main__":
    main()
