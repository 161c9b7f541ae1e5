"""Tokenizers, language models and reward models: any Hugging Face causal LM, or a pocket one."""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from w2s.batches import Batch, Layout
from w2s.fast import cpu, lower, packed
from w2s.files import digest as file_digest
from w2s.losses import next_token_loss
from w2s.params import Lora, ParameterError
from w2s.sources import adapters, hub
from w2s.sources.hub import ADAPTERS, LADDER, base_of, cut, from_pretrained, resolve

UNIT_FILE = "reward_unit.safetensors"
AT_ONCE = {"cpu": 256, "cuda": 1024, "mps": 1024}  # tokens whose logits are made at once: more of them take memory
fast_products, last_states = cpu.products, packed.last_states  # no other module of the core uses the wing `fast`
GELU = {"gelu_new": "gelu_pytorch_tanh"}  # the same function; the first is a chain of eight operations


def load_config(name: str):
    """A model's configuration with every dropout set to 0, as in the paper, and GELU by PyTorch's one kernel."""
    config = from_pretrained(AutoConfig, name)
    hub.check_architecture(name, config)
    for key, value in config.to_dict().items():
        if isinstance(value, float) and (key.endswith(("dropout", "pdrop")) or key == "layerdrop"):
            setattr(config, key, 0.0)
        if isinstance(value, str):
            setattr(config, key, GELU.get(value, value))
    if (blocks := cut(name)[1]) is not None:
        _keep_first(config.get_text_config(), blocks, name)
    return config


def _keep_first(config, blocks: int, name: str) -> None:
    """Cut a configuration to the first blocks, and with it what it lists for each block."""
    n = config.num_hidden_layers
    if not 1 <= blocks <= n:
        raise ParameterError(f"model {name!r}: it has {n} blocks; write [:1] to [:{n}]")
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == n:
            setattr(config, key, value[:blocks])
    config.num_hidden_layers = blocks


def load_tokenizer(name: str):
    """A fast tokenizer: its offsets find the response. Padding is done by `w2s.batches`, without a pad token."""
    tokenizer = from_pretrained(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise ParameterError(f"model {name!r} has no fast tokenizer; choose one that has a tokenizer.json")
    tokenizer.model_max_length = int(1e9)  # batches.py cuts, and counts what it cuts
    return tokenizer


def matching_tokenizer(name: str):
    """As `load_tokenizer`, of a model that has weights, and an embedding for each token, which is checked."""
    tokenizer = load_tokenizer(name)
    hub.check_vocabulary(name, tokenizer, load_config(name))
    hub.check_weights(name)
    return tokenizer


def load_language_model(name: str, lora: Lora | None = None, seed: int = 0, dtype=torch.float32, trained_blocks=None):
    """The causal LM itself, dropout off; one whose logits are more than its head's output (soft-capped) is refused.

    With `trained_blocks`, its last blocks, its last norm and its head are trained alone, the head apart from the
    embeddings that it may share.
    """
    model = _load(AutoModelForCausalLM, name, lora, seed, dtype)
    if not _has_plain_head(model):
        raise ParameterError(f"model {name!r}: its logits are not its head's plain output; use it with method: reward")
    if trained_blocks is not None:
        _train_last(model, trained_blocks, name)
        shared = model.get_output_embeddings()
        model.set_output_embeddings(copy.deepcopy(shared).requires_grad_())
        model.config.tie_word_embeddings = False
        for part, parameter in model.base_model.named_parameters():
            if "norm" in part or "ln_f" in part:
                parameter.requires_grad_()
    return model


def _check_blocks(model, name: str, blocks: int) -> None:
    if blocks > (n := len(lower.blocks_of(model))):
        raise ParameterError(f"trained_blocks = {blocks}: model {name!r} has {n} blocks; lower it")


def _train_last(model, trained_blocks: int, name: str) -> None:
    """Have the last blocks of a model or a body trained alone, and those below computed once for each text."""
    body = model.base_model
    _check_blocks(model, name, trained_blocks)
    body.lower = lower.LowerBlocks(body, trained_blocks)
    model.requires_grad_(False)
    for block in body.lower.every[body.lower.n :]:
        block.requires_grad_()


@torch.no_grad()
def _has_plain_head(model) -> bool:
    """Whether its logits are what its head makes of its body's states, and nothing else."""
    head, ids = model.get_output_embeddings(), torch.tensor([[0, 1]])
    louder = head.register_forward_hook(lambda module, inputs, output: 1e4 * output)  # shows a cap far above the logits
    expected = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    logits = model(input_ids=ids, use_cache=False).logits
    louder.remove()
    return torch.allclose(expected.float(), logits.float())


def _load(loader, name: str, lora: Lora | None, seed: int, dtype: torch.dtype):
    """Weights in float32; with `lora` the frozen ones in `dtype`, and adapters, new or saved, in float32."""
    base = base_of(name)
    model = from_pretrained(loader, base, config=load_config(base), dtype=dtype if lora else torch.float32)
    if base != name:
        adapters.read(model, base, name)
    elif lora:
        adapters.add(model, base, lora, seed)
    packed.enable(model)
    return model.eval()  # adapters come with their dropout on


def save(model, folder: str | Path) -> None:
    """Write a language model or a body as safetensors; of an adapted one, the adapters alone."""
    below = getattr(model.base_model, "lower", None)
    with below.kept(0, len(below.every)) if below else nullcontext():
        model.save_pretrained(folder)
    model.config.save_pretrained(folder)
    adapters.name_base(model, Path(folder))


class RewardModel(nn.Module):
    """A language model's body and one linear unit, no bias, at the last real token (Yang et al., 2024)."""

    def __init__(self, body: nn.Module, seed: int = 0):
        super().__init__()
        self.body = body
        width = getattr(body.config, "word_embed_proj_dim", None) or body.config.hidden_size
        generator = torch.Generator().manual_seed(seed)
        self.unit = nn.Linear(width, 1, bias=False)
        self.unit.weight.data.normal_(0.0, 0.02, generator=generator)

    @classmethod
    def load(cls, name: str, seed=0, lora: Lora | None = None, dtype=torch.float32, trained_blocks=None) -> RewardModel:
        """The body of a pretrained model with a fresh unit drawn from `seed`, or a saved reward model.

        With `lora`, frozen weights are in `dtype`; the unit is trained in float32 always. With `trained_blocks`, so
        many of the last blocks are trained, and the unit.
        """
        model = cls(_load(AutoModel, name, lora, seed, dtype), seed)
        if trained_blocks is not None:
            _train_last(model.body, trained_blocks, name)
        saved = Path(resolve(name)) / UNIT_FILE
        if saved.is_file():
            model.unit.weight.data.copy_(load_file(saved)["weight"])
        return model

    def save(self, folder: str | Path) -> None:
        """Write body and unit as safetensors, loadable by `load`."""
        save(self.body, folder)
        save_file({"weight": self.unit.weight.data.contiguous()}, Path(folder) / UNIT_FILE)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layout: Layout | None = None) -> Tensor:
        """Rewards (n,) in logits of n right-padded texts (n, length); with their layout, computed without padding."""
        last = attention_mask.sum(1) - 1
        every = torch.arange(len(last), device=last.device)
        hidden = last_states(self.body, input_ids, attention_mask, layout, every, last)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.unit(hidden.float()).squeeze(1)


def pair_margins(model: RewardModel, batch: Batch) -> Tensor:
    """r(chosen) - r(rejected) of a batch of pairs: (n,) logits."""
    chosen, rejected = model(batch.input_ids, batch.attention_mask, batch.layout).chunk(2)
    return chosen - rejected


def text_logps(model, batch: Batch, average: bool = False) -> Tensor:
    """`losses.response_logps` of each text: (rows,) nats; here the head sees the response tokens alone."""
    counted = batch.response_mask[:, 1:].bool()
    rows, before = counted.nonzero(as_tuple=True)
    targets = batch.input_ids[:, 1:][counted]
    states = last_states(model.base_model, batch.input_ids, batch.attention_mask, batch.layout, rows, before)
    head, blocks = model.get_output_embeddings(), (x.split(AT_ONCE[states.device.type]) for x in (states, targets))
    each = -torch.cat([next_token_loss(head(block), following) for block, following in zip(*blocks, strict=True)])
    total = torch.zeros(len(counted), dtype=each.dtype, device=each.device).index_add(0, rows, each)
    return total / counted.sum(1) if average else total


@lru_cache
def n_parameters(name: str, head: bool = False) -> int:
    """Parameters of a model's body, or with its head (shared weights once), counted without loading them."""
    loader = AutoModelForCausalLM if head else AutoModel
    with torch.device("meta"):
        return sum(p.numel() for p in loader.from_config(load_config(name)).parameters())


@lru_cache
def n_trained(name: str, head: bool = False, lora: Lora | None = None, blocks: int | None = None) -> int:
    """How many of `n_parameters` a run trains: the adapters of `lora`, so many blocks (and the head), or all."""
    if not lora and blocks is None:
        return n_parameters(name, head)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(name))
        if lora:
            adapters.add(model, name, lora, seed=0)
            return sum(p.numel() for p in model.parameters() if p.requires_grad)
    _check_blocks(model, name, blocks)
    own = model.get_output_embeddings().weight.numel() if head else 0
    return own + blocks * sum(p.numel() for p in lower.blocks_of(model)[0].parameters())


@lru_cache
def fingerprint(name: str) -> str:
    """What identifies a model and its tokenizer: a hash of a local folder's files, or the hub's revision.

    The shipped ladder's hash leaves out how its one tokenizer names its special tokens, as its predictions' names do.
    """
    whole, blocks = cut(name)
    if blocks is not None:
        return f"{fingerprint(whole)}[:{blocks}]"
    where = Path(resolve(name))
    if where.parent == hub.hub_folder() / "gguf":  # named by the hash of the file that it was made of
        return where.name
    if not where.is_dir():
        return f"{name}@{getattr(load_config(name), '_commit_hash', None)}"
    digest = hashlib.sha256()
    spelling = () if where.parent == LADDER else ("tokenizer_config.json", "special_tokens_map.json")
    for file in sorted(where.glob("*")):
        if file.suffix in (".safetensors", ".bin") or file.name in ("tokenizer.json", ADAPTERS, *spelling):
            digest.update(file.name.encode() + bytes.fromhex(file_digest(file)))
    if base_of(name) != name:
        digest.update(fingerprint(base_of(name)).encode())
    config = {k: v for k, v in json.loads((where / "config.json").read_text()).items() if k != "transformers_version"}
    return hashlib.sha256(digest.digest() + json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def choose_device(device: str) -> torch.device:
    """`auto` takes a GPU when there is one; a device that this machine lacks is a ParameterError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device.split(":")[0]]:
        raise ParameterError(f"device = {device!r}: this machine has none; set device to auto or cpu")
    return torch.device(device)


def autocast(device: torch.device, dtype: torch.dtype):
    """The forward pass in `dtype` where that is not float32; weights keep their own."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
