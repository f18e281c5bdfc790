"""Hugging Face Transformers 5.7 and newer: libmoe for every model that uses the experts interface, and for NLLB-MoE.

    import libmoe.transformers
    libmoe.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="libmoe")

or model.set_experts_implementation("libmoe") on a model that is there. libmoe.transformers.patch_nllb(model) for NLLB-MoE.
"""

try:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as _functions
except ImportError as error:
    import importlib.util

    found = importlib.util.find_spec("transformers")
    if found:
        import libmoe.torch  # says so where PyTorch is what is missing
    what = "this one has no experts interface" if found else "it is not installed"
    raise ImportError(f"libmoe.transformers needs Transformers 5.7 or newer, {what}: pip install --upgrade transformers") from error

import transformers as _transformers

if tuple(map(int, _transformers.__version__.split(".")[:2])) < (5, 7):
    # They let nobody choose an implementation that is not their own.
    raise ImportError(f"libmoe.transformers needs Transformers 5.7 or newer; this is {_transformers.__version__}: "
                      "pip install --upgrade transformers")

import libmoe.torch  # noqa: F401

from ._experts import FALLBACK, experts_forward, quantized_forward
from ._nllb import patch_nllb

__all__ = ["patch_nllb", "register"]


def register(name="libmoe", fallback=None):
    """Makes experts_implementation=`name` available.

    `fallback` names the implementation ("grouped_mm", "batched_mm", "eager") for experts that libmoe cannot compute: weights
    that are quantized or of a dtype without kernels. Without it those are an error.
    """
    if fallback is not None and fallback != "eager" and fallback not in _functions:
        raise ValueError(f"fallback is {fallback!r}; it must be eager or one of {', '.join(_functions.valid_keys())}")
    FALLBACK["name"] = fallback
    _functions.register(name, experts_forward)
    try:
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError:
        return
    ALL_FP8_EXPERTS_FUNCTIONS.register(name, quantized_forward)
