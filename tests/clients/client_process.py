"""The clients in a process of their own, since a mapped page that cannot be read ends it: paths come in, verdicts go out."""
import json
import sys
import traceback
from pathlib import Path

import safetensors.torch
import torch
from made_models import LAYERS, expect_same, origin_tensors, output_of


def check(name: str, mounted: Path, local: Path) -> None:
    """transformers, safetensors and torch.load, read and mapped, over one model."""
    origin = origin_tensors(local)
    assert torch.equal(output_of(name, str(mounted)), output_of(name, str(local)))
    for shard in local.glob("*.safetensors"):
        expect_same(safetensors.torch.load_file(mounted / shard.name), safetensors.torch.load_file(shard))
    for mapped in (False, True):
        got = {}
        for stem in [*(f"layer_{i}" for i in range(LAYERS[name])), "non_layer"]:
            got |= torch.load(mounted / f"{stem}.pt", weights_only=True, mmap=mapped)
        expect_same(got, origin)


if __name__ == "__main__":
    for line in sys.stdin:
        name, mounted, local = json.loads(line)
        try:
            check(name, Path(mounted), Path(local))
            verdict = ""
        except Exception:
            verdict = traceback.format_exc()
        print(json.dumps(verdict), flush=True)
