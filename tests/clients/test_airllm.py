"""AirLLM runs straight off splitted_model/: it finds its split there and writes nothing."""
import os
import subprocess
import sys

import pytest
import torch
from made_models import output_of

RUN = """
import sys, torch, airllm
model = airllm.AutoModel.from_pretrained(sys.argv[1], device="cpu")
ids = torch.arange(3, 35).reshape(2, 16)
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
"""


def run_airllm(path_or_id: str, tmp_path, extra_env: dict) -> tuple[torch.Tensor, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf-home")} | extra_env
    done = subprocess.run([sys.executable, "-c", RUN, path_or_id, str(tmp_path / "out.pt")], capture_output=True,
                          text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "out.pt", weights_only=True), done.stdout


@pytest.mark.parametrize("name", ["llama", "llama-bf16-tied", "llama-single"])
@pytest.mark.parametrize("by", ["path", "id"])
def test_airllm_runs_without_splitting(served, local, tmp_path, name, by):
    if by == "path":
        got, said = run_airllm(str(served / "org" / name), tmp_path, {})
    else:
        got, said = run_airllm(f"org/{name}", tmp_path, {"HF_HUB_CACHE": str(served / ".hub")})
    assert "saved layers already found" in said
    assert torch.equal(got, output_of(name, str(local / "org" / name)))
