"""What the typed functions share: shapes checked by name, outputs allocated like inputs.

Optional outputs are asked for by their keyword: True allocates one, an array is written to, None is not computed.
"""

import math

from . import _arrays


class Call:
    """One call of moe_<name> being put together. Sizes are named by letters, bound where they are first seen:

        call = Call(ctx, "router_fwd", K=2)
        call.takes("T E", logits=logits)            # binds T and E
        call.gives("T K", "int32", ids=True)        # allocates [T, 2]
        call.run({"num_tokens": call["T"], ...}, stream)
        return call.collect(RouterOutput)
    """

    def __init__(self, ctx, name, **sizes):
        self.ctx = ctx
        self.name = name
        self.sizes = sizes
        self.args = {}
        self.like = None

    def __getitem__(self, size):
        return self.sizes[size]

    def takes(self, shape, **arrays):
        """Inputs of a shape; None is an absent one. "T*K" is [T, K] or [T*K]."""
        for name, array in arrays.items():
            self.args[name] = array
            if array is not None:
                self._check(name, array, shape)
                self.like = first(array) if self.like is None else self.like

    def gives(self, shape, dtype=None, like=None, **arrays):
        """Outputs of a shape; those that are True are allocated, with the first input's dtype unless told."""
        for name, array in arrays.items():
            if array is True:
                model = self.like if like is None else first(like)
                view = _arrays.view(name, model)
                sizes = [self._size(size) for size in shape.replace("*", " ").split()]
                array = _arrays.array_library(model).empty(tuple(sizes), dtype or view.dtype, view.device)
            elif array is False:
                array = None
            elif array is not None:
                self._check(name, array, shape)
            self.args[name] = array

    def run(self, desc, stream=None, **rest):
        """`rest` are arguments without a shape to check: counts, modes, random numbers, a report."""
        self.ctx.run(self.name, desc, {**self.args, **rest}, stream)

    def collect(self, kind):
        return kind(*(self.args.get(field) for field in kind._fields))

    def _size(self, size):
        return int(size) if size.isdigit() else self.sizes[size]

    def _check(self, name, array, shape):
        if not isinstance(array, (list, tuple)) and not _arrays.is_array(array):
            raise TypeError(f"{name} is {type(array).__name__}: not an array")
        actual = shape_of(array)
        wanted = shape.replace("*", " ").split()
        if "*" in shape and len(actual) == 1:
            fits = actual[0] == math.prod(self._size(size) for size in wanted)
        else:
            fits = len(actual) == len(wanted) and all(
                self.sizes.setdefault(size, given) == given if not size.isdigit() else int(size) == given
                for size, given in zip(wanted, actual)
            )
        if not fits:
            known = ", ".join(str(self.sizes.get(size, size)) for size in wanted)
            raise ValueError(f"{name} has shape {list(actual)}; it must be [{', '.join(wanted)}] = [{known}]")


def first(array):
    """An array itself; the first one of a list by pointers."""
    return next((a for a in array if a is not None), None) if isinstance(array, (list, tuple)) else array


def shape_of(array):
    """The shape of an array; of a list of arrays (a tensor by pointers) with the list's length before it."""
    model = first(array)
    inner = () if model is None else tuple(model.shape)
    return (len(array), *inner) if isinstance(array, (list, tuple)) else inner


def dtype_of(array):
    """The name of an array's dtype."""
    return _arrays.dtype_name(first(array).dtype)


def router_dtype(x, dtype):
    """What router weights are in by default: fp32, or fp64 where all is fp64."""
    return dtype or ("float64" if dtype_of(x) == "float64" else "float32")
