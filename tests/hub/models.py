"""Model repositories for tests: every naming family, sharded or not, tiny to gigabytes.

Each tensor says which layer file it belongs to, so a test has the expected layout without
repeating NexusFS's own rules.
"""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tensorfiles
from tensorfiles import Tensor


@dataclasses.dataclass(frozen=True)
class Stack:
    prefix: str  # with {} for the number
    members: tuple[str, ...]
    in_layers: bool = True  # False: a vision tower, part of non_layer


@dataclasses.dataclass(frozen=True)
class Family:
    stacks: tuple[Stack, ...]  # in the order in which layer files number them
    outside: tuple[str, ...]


_LLAMA = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
          "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
          "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight")
_BERT = ("attention.self.query.weight", "attention.self.query.bias",
         "attention.output.LayerNorm.weight", "intermediate.dense.weight", "output.dense.weight")
_GPT2 = ("attn.c_attn.weight", "attn.c_attn.bias", "ln_1.weight", "mlp.c_fc.weight")

FAMILIES = {
    "llama": Family((Stack("model.layers.{}.", _LLAMA),),
                    ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")),
    "llama-tied": Family((Stack("model.layers.{}.", _LLAMA),),
                         ("model.embed_tokens.weight", "model.norm.weight")),
    "mixtral": Family((Stack("model.layers.{}.", (
        "self_attn.q_proj.weight", "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.0.w1.weight", "block_sparse_moe.experts.1.w1.weight",
        "input_layernorm.weight")),), ("model.embed_tokens.weight", "lm_head.weight")),
    "gpt2": Family((Stack("h.{}.", _GPT2),), ("wte.weight", "wpe.weight", "ln_f.weight")),
    "falcon": Family((Stack("transformer.h.{}.", ("self_attention.query_key_value.weight",
                                                  "input_layernorm.weight")),),
                     ("transformer.word_embeddings.weight", "transformer.ln_f.weight")),
    "bert": Family((Stack("bert.encoder.layer.{}.", _BERT),),
                   ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight")),
    "minilm": Family((Stack("encoder.layer.{}.", _BERT),),
                     ("embeddings.word_embeddings.weight", "pooler.dense.weight")),
    "distilbert": Family((Stack("distilbert.transformer.layer.{}.", ("attention.q_lin.weight",
                                                                     "sa_layer_norm.weight")),),
                         ("distilbert.embeddings.word_embeddings.weight",)),
    "neox": Family((Stack("gpt_neox.layers.{}.", ("attention.query_key_value.weight",
                                                  "input_layernorm.weight")),),
                   ("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight",
                    "embed_out.weight")),
    "opt": Family((Stack("model.decoder.layers.{}.", ("self_attn.q_proj.weight", "fc1.weight")),),
                  ("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight")),
    "t5": Family((Stack("encoder.block.{}.", ("layer.0.SelfAttention.q.weight",
                                              "layer.1.DenseReluDense.wi.weight")),
                  Stack("decoder.block.{}.", ("layer.0.SelfAttention.q.weight",
                                              "layer.1.EncDecAttention.q.weight"))),
                 ("shared.weight", "encoder.final_layer_norm.weight",
                  "decoder.final_layer_norm.weight")),
    "mpt": Family((Stack("transformer.blocks.{}.", ("attn.Wqkv.weight", "norm_1.weight")),),
                  ("transformer.wte.weight", "transformer.norm_f.weight")),
    "mamba": Family((Stack("backbone.layers.{}.", ("mixer.in_proj.weight", "norm.weight")),),
                    ("backbone.embeddings.weight", "backbone.norm_f.weight")),
    "vision-language": Family(
        (Stack("model.language_model.layers.{}.", _LLAMA),
         Stack("model.visual.blocks.{}.", ("attn.qkv.weight", "norm1.weight"), in_layers=False)),
        ("model.language_model.embed_tokens.weight", "model.visual.merger.mlp.weight",
         "lm_head.weight")),
    # by name: "single_transformer_blocks" comes before "transformer_blocks"
    "flux": Family((Stack("single_transformer_blocks.{}.", ("attn.to_q.weight", "norm.linear.weight")),
                    Stack("transformer_blocks.{}.", ("attn.to_q.weight", "attn.to_k.weight"))),
                   ("x_embedder.weight", "proj_out.weight")),
}


def family_tensors(family: str, layers: int, hidden: int, dtype: str = "F32",
                   salt: str = "") -> list[Tensor]:
    """`layers` counts each stack: a T5 of 2 has four layer files."""
    def tensor(name: str, layer: int | None) -> Tensor:
        flat = any(part in name.lower() for part in ("norm", "ln_", "bias"))
        shape = (hidden,) if flat else (hidden, hidden)
        return Tensor(name, dtype, shape, layer, seed=salt + name)

    chosen, result, number = FAMILIES[family], [], 0
    for stack in chosen.stacks:
        for index in range(layers):
            layer = number if stack.in_layers else None
            result += [tensor(stack.prefix.format(index) + member, layer) for member in stack.members]
            number += stack.in_layers
    return result + [tensor(name, None) for name in chosen.outside]


@dataclasses.dataclass
class Model:
    path: Path
    tensors: list[Tensor]
    weight_map: dict[str, str]  # tensor -> file

    @property
    def layer_count(self) -> int:
        return 1 + max((t.layer for t in self.tensors if t.layer is not None), default=-1)

    def of_layer(self, layer: int | None) -> dict[str, Tensor]:
        return {t.name: t for t in self.tensors if t.layer == layer}

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())

    def shards(self) -> list[str]:
        return sorted(set(self.weight_map.values()))


def write_side_files(path: Path, family: str, layers: int, salt: str = "") -> None:
    """What stands beside the weights in a real repository, nested directories included."""
    config = {"model_type": family, "num_hidden_layers": layers, "architectures": ["Test"],
              "salt": salt}
    for name, content in {
        "config.json": json.dumps(config, indent=2),
        "tokenizer.json": json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}}}),
        "tokenizer_config.json": json.dumps({"model_max_length": 128}),
        "special_tokens_map.json": "{}",
        "README.md": f"# {family} {salt}\n",
        ".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "1_Pooling/config.json": json.dumps({"pooling_mode_mean_tokens": True}),
        "original/deep/er/params.json": json.dumps({"dim": 1}),
        "empty.txt": "",
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)


def split_into_shards(tensors: list[Tensor], count: int) -> list[list[Tensor]]:
    """Cuts by bytes in name order, as writers do: a cut may go through a layer."""
    ordered = sorted(tensors, key=lambda t: t.name)
    total, used = sum(t.nbytes for t in ordered), 0
    shards: list[list[Tensor]] = [[] for _ in range(count)]
    for tensor in ordered:
        shards[min(count - 1, used * count // max(total, 1))].append(tensor)
        used += tensor.nbytes
    return [shard for shard in shards if shard]


def write_index(path: Path, stem: str, suffix: str, tensors: list[Tensor],
                weight_map: dict[str, str]) -> None:
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps(
        {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map},
        indent=2, sort_keys=True))


def write_weights(path: Path, tensors: list[Tensor], shards: int = 1, *, torch_zip: bool = False,
                  stem: str | None = None, metadata: dict | None = {"format": "pt"}) -> dict[str, str]:
    stem = stem or ("pytorch_model" if torch_zip else "model")
    suffix = "bin" if torch_zip else "safetensors"
    parts = split_into_shards(tensors, shards) if shards > 1 else [tensors]
    weight_map = {}
    for i, part in enumerate(parts, start=1):
        name = f"{stem}.{suffix}" if len(parts) == 1 else f"{stem}-{i:05}-of-{len(parts):05}.{suffix}"
        if torch_zip:
            tensorfiles.write_torch_zip(path / name, part)
        else:
            tensorfiles.write_safetensors(path / name, part, metadata)
        weight_map |= {tensor.name: name for tensor in part}
    if len(parts) > 1:
        write_index(path, stem, suffix, tensors, weight_map)
    return weight_map


def make_model(path: Path, family: str = "llama", *, layers: int = 2, hidden: int = 16,
               dtype: str = "F32", shards: int = 1, torch_zip: bool = False,
               salt: str = "", tensors: list[Tensor] | None = None) -> Model:
    """A whole repository at `path`. `salt` makes a second revision with other bytes."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = tensors or family_tensors(family, layers, hidden, dtype, salt)
    write_side_files(path, family, layers, salt)
    stem = "diffusion_pytorch_model" if family == "flux" and not torch_zip else None
    weight_map = write_weights(path, tensors, shards, torch_zip=torch_zip, stem=stem)
    return Model(path, tensors, weight_map)


def odd_tensors() -> list[Tensor]:
    """Every dtype, zero-size and scalar tensors, in two layers."""
    result = []
    for number, dtype in enumerate(sorted(tensorfiles.BITS)):
        if tensorfiles.BITS[dtype] % 8 or dtype not in tensorfiles.STORAGES | tensorfiles.TORCH_DTYPES:
            continue
        result.append(Tensor(f"model.layers.{number % 2}.{dtype.lower()}.weight", dtype, (3, 5),
                             layer=number % 2))
    return result + [
        Tensor("model.layers.0.empty.weight", "F32", (0, 4), layer=0),
        Tensor("model.layers.0.scalar", "F32", (), layer=0),
        Tensor("model.layers.1.empty_at_end", "BF16", (7, 0), layer=1),
        Tensor("model.embed_tokens.weight", "BF16", (8, 4)),
    ]


def sized_llama(total_bytes: int, layers: int, dtype: str = "BF16") -> list[Tensor]:
    """A llama whose layers together take about `total_bytes`: 7 square matrices a layer."""
    element = tensorfiles.BITS[dtype] // 8
    hidden = int((total_bytes / layers / 7 / element) ** 0.5) // 64 * 64
    return family_tensors("llama-tied", layers, hidden, dtype)


def write_base_url_layers(path: Path, count: int, nbytes: int = 300_000) -> list[bytes]:
    """Pre-split layers as `base_url/layer_i.pt`: opaque files, torch zips like any other here."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        tensorfiles.write_torch_zip(path / f"layer_{i}.pt", [
            Tensor(f"model.layers.{i}.w", "F32", (nbytes // 4 + i,), layer=i)], root=f"layer_{i}")
    return [(path / f"layer_{i}.pt").read_bytes() for i in range(count)]
