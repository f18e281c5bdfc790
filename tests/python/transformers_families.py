"""Tiny models of every family of the installed Transformers that uses the experts interface, found by looking."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

# What makes a configuration small, where it has such a field.
SMALL = {
    "hidden_size": 32, "intermediate_size": 24, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_hidden_layers": 2, "num_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_local_experts": 6, "num_experts": 6, "n_routed_experts": 6, "moe_num_experts": 6, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_topk": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1, "vocab_size": 99, "vocab_size_per_layer_input": 99, "unpadded_vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
}
# What a family needs beside that: hybrids need the layer that attends, some sizes follow from others, some have no default.
FOUR = {"num_hidden_layers": 4}
ONE_HEAD = {"hidden_size": 128, "head_dim": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
MORE = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "beam": {"mlp_layer_types": ["dense", "sparse"]}, "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse"]}, "dots1": {"n_shared_experts": 1},
    "ernie4_5_vl_moe": ONE_HEAD | {"moe_intermediate_size": [24, 24]}, "flint": {"mlp_only_layers": [0]}, "gemma4": {"enable_moe_block": True},
    "glm4v_moe": ONE_HEAD,
    "glm5_next": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": 8, "mlp_layer_types": ["dense", "sparse"]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]},
    "hy_v4_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    "jamba": {"num_hidden_layers": 6}, "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}, "mistral4": {"head_dim": 16},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_5_moe": FOUR, "qwen3_next": FOUR,
    "qwen4_exp": FOUR | {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4},
    "zaya": {"num_experts_per_tok": 1},
}

# Their parts that see do not get small by these fields: the text model alone.
LARGE_EYES = {"deepseek_ocr2", "ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "qwen3_omni_moe"}


def modules():
    """Names of the modelling modules that use the interface."""
    folder = Path(transformers.__file__).parent / "models"
    for package in pkgutil.iter_modules([str(folder)]):
        path = folder / package.name / f"modeling_{package.name}.py"
        if path.exists() and "\n@use_experts_implementation" in path.read_text():
            yield package.name


def load(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def experts_classes(family):
    module = load(family)
    return [c for _, c in inspect.getmembers(module, inspect.isclass)
            if c.__module__ == module.__name__ and hasattr(c, "_apply_gate") and hasattr(c.forward, "__wrapped__")]


def configs(family):
    """The family's configuration classes that can be made without arguments, the text's first."""
    module = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)
               if c.__module__ == module.__name__ and issubclass(c, PretrainedConfig)]
    return sorted(classes, key=lambda c: "Text" not in c.__name__)


class ExpertsConfig:
    """What an experts class reads: small sizes, else the defaults of the family's configurations."""

    def __init__(self, family):
        self.defaults = [c() for c in configs(family)]
        self._experts_implementation = "eager"

    def __getattr__(self, name):
        if name == "defaults" or name.startswith("__"):
            raise AttributeError(name)
        if name in SMALL:
            return SMALL[name]
        for config in self.defaults:
            if hasattr(config, name):
                return getattr(config, name)
        raise AttributeError(name)


def tiny_model(family, seed=0):
    """A tiny model with random weights, whose experts really are used; None with the reason where it cannot be made so."""
    reasons = []
    for model_class in _model_classes(family):
        try:
            torch.manual_seed(seed)
            model = model_class(_small(model_class.config_class, family))
        except Exception as error:  # a class that needs more than sizes
            reasons.append(f"{model_class.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
            continue
        if any(type(module) in experts_classes(family) for module in model.modules()):
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, parameter.shape[-1] ** -0.5)
            return model, None
        reasons.append(f"{model_class.__name__} has no experts")
    return None, "; ".join(reasons)


def _model_classes(family):
    """Models of text first; those that are trained by labels before bare ones."""
    module = load(family)
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)
               if c.__module__ == module.__name__ and issubclass(c, PreTrainedModel) and getattr(c, "config_class", None)]
    if family in LARGE_EYES:
        classes = [c for c in classes if c.__name__.endswith("TextModel")]
    order = ("ForCausalLM", "ForConditionalGeneration", "ForTokenClassification", "TextModel", "Model")
    rank = {c: next((i for i, end in enumerate(order) if c.__name__.endswith(end)), None) for c in classes}
    return sorted((c for c in classes if rank[c] is not None), key=lambda c: (rank[c], c.__name__))


def _small(config_class, family):
    """A configuration with small sizes, its parts' too; what depends on sizes follows."""
    return config_class(**_small_fields(config_class, family))


def _small_fields(config_class, family):
    default = config_class()
    wanted = dict(SMALL)
    if _has(default, "kv_lora_rank"):
        # Latent attention: a head of its own for each, of the rotated width.
        wanted |= {"num_key_value_heads": 4, "head_dim": 8}
    fields = {name: value for name, value in (wanted | MORE.get(family, {})).items() if _has(default, name)}
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if isinstance(part, type) and part is not PretrainedConfig and "Auto" not in part.__name__:
            fields[name] = _small_fields(part, family)
    return fields


def _has(config, name):
    """Whether a field is there, and one for all layers."""
    try:
        return hasattr(config, name)
    except Exception:  # a field that each layer has for itself
        return False
