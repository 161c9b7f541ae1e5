"""Low-rank adapters (Hu et al., 2021): added to a model, read from a folder, written with the name of their base."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from w2s.params import Lora, ParameterError
from w2s.sources.hub import ADAPTERS, resolve


def add(model, base: str, lora: Lora, seed: int) -> None:
    """Give a model new adapters, drawn from `seed`."""
    from peft import LoraConfig  # here, as it takes seconds to import and most studies train no adapters

    torch.manual_seed(seed)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    layers = {"target_modules": list(lora.target_modules or ()) or None, "fan_in_fan_out": transposed}
    _inject(model, base, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, **layers))


def read(model, base: str, name: str) -> None:
    """Give a model the adapters that a folder holds."""
    from peft import LoraConfig

    _inject(model, base, LoraConfig.from_pretrained(resolve(name)))
    # hotswap: into the weights that are there. On its own, load_adapter rounds them to the base model's dtype.
    result = model.load_adapter(resolve(name), adapter_name="default", hotswap=True, is_trainable=True)
    if result.missing_keys:
        lost = len(result.missing_keys)
        raise ParameterError(f"model {name!r}: its files lack {lost} of its adapters' weights; train it again")


def _inject(model, base: str, config) -> None:
    """Put adapters into a model, in float32 whatever the model is in."""
    try:
        model.add_adapter(config)
    except ValueError as error:
        layers = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
        reason = " ".join(str(error).split()).partition(". Please")[0][:120]
        raise ParameterError(f"model {base!r}: {reason}; set target_modules of lora to some of {layers}") from None
    # `save` writes the name: given one, PEFT asks the hub about it, and add_adapter's has lost its revision.
    model.peft_config["default"].base_model_name_or_path, model.adapted_from = None, base
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.data = parameter.data.float()


def name_base(model, folder: Path) -> None:
    """Write the base into the saved settings of an adapted model."""
    if hasattr(model, "adapted_from"):
        settings = json.loads((folder / ADAPTERS).read_text(encoding="utf-8"))
        text = json.dumps(settings | {"base_model_name_or_path": model.adapted_from}, indent=2, sort_keys=True) + "\n"
        (folder / ADAPTERS).write_text(text, encoding="utf-8")
