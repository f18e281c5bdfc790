"""How libmoe's functions become operators of torch: torch.ops.libmoe.<name>, with fakes and gradients."""

import functools

import torch

LIBRARY = torch.library.Library("libmoe", "FRAGMENT")


def operator(schema):
    """Defines torch.ops.libmoe.<name> of a schema; the decorated function computes it on CPU and CUDA tensors.

    Give it a `.fake`, which allocates the outputs without computing, and a `.backward` where it has a gradient.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def decorate(function):
        for backend in ("CPU", "CUDA"):
            LIBRARY.impl(name, function, backend)
        function.fake = functools.partial(_register_fake, name)
        function.backward = functools.partial(_register_backward, name)
        return function

    return decorate


def _register_fake(name, fake):
    """Without data nothing else would tell that tensors lie on several devices: parameters left on meta, say."""

    @functools.wraps(fake)
    def checked_fake(*arguments):
        devices = {tensor.device for tensor in arguments if isinstance(tensor, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"libmoe.{name}: tensors are on {' and '.join(sorted(map(str, devices)))}")
        return fake(*arguments)

    torch.library.register_fake(f"libmoe::{name}", checked_fake, lib=LIBRARY)
    return fake


def _register_backward(name, setup):
    """@operator.backward(setup) def backward(ctx, *grads): gradients of all arguments."""

    def decorate(backward):
        torch.library.register_autograd(f"libmoe::{name}", backward, setup_context=setup, lib=LIBRARY)
        return backward

    return decorate


def no_second_derivative(name):
    """Calling a backward operator with gradients on is an error, not a silent zero."""

    def backward(ctx, *_):
        raise NotImplementedError(f"libmoe::{name} has no derivative: libmoe has first derivatives only")

    torch.library.register_autograd(f"libmoe::{name}", backward, lib=LIBRARY)


def encode(options, more=""):
    """Descriptor fields as an operator takes them: `activation=0,clamp_limit=7.0`. `more` is such a text already.

    Modules encode theirs once: torch.compile takes the floats among a module's attributes for variables.
    """
    text = ",".join([f"{name}={options[name]!r}" for name in sorted(options) if options[name] is not None])
    return f"{text},{more}" if text and more else text or more


@functools.lru_cache(maxsize=1024)
def decode(options):
    """What `encode` was given. Not to be changed by the caller."""
    pairs = (pair.partition("=") for pair in options.split(",") if pair)
    return {name: float(value) if any(c in value for c in ".en") else int(value) for name, _, value in pairs}


def checked(desc, options, where):
    """The options encoded; TypeError where one is no field of the descriptor."""
    unknown = options.keys() - desc.declarations.keys()
    if unknown:
        raise TypeError(f"{where} has no option {sorted(unknown)[0]!r}; it has {', '.join(sorted(desc.declarations))}")
    return encode({name: int(value) if isinstance(value, bool) else value for name, value in options.items()})


def autocast(*tensors):
    """The tensors in autocast's dtype where it is on; router weights are not given to this: they stay fp32."""
    kind = tensors[0].device.type
    if not autocasting(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def autocasting(kind):
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
