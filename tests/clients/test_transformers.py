"""transformers.from_pretrained of mount paths, and of model ids through MOUNT/.hub."""
import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from made_models import output_of

HERE = Path(__file__).resolve().parent


def test_logits_from_the_mount_path_equal_the_local_copy(served, local, name):
    assert torch.equal(output_of(name, str(served / "org" / name)), output_of(name, str(local / "org" / name)))


def offline_environment(nexus, tmp_path) -> dict:
    """What a user sets, and nothing else of huggingface_hub's."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return clean | {"HF_HUB_CACHE": str(nexus / ".hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf-home")}


BY_ID = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from made_models import output_of
torch.save(output_of(sys.argv[2], "org/" + sys.argv[2]), sys.argv[3])
"""


def test_logits_by_model_id_through_the_hub_layout(served, local, name, tmp_path):
    subprocess.run([sys.executable, "-c", BY_ID, str(HERE), name, str(tmp_path / "out.pt")], check=True,
                   cwd=tmp_path, env=offline_environment(served, tmp_path))
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(got, output_of(name, str(local / "org" / name)))


SNAPSHOT = """
import sys, huggingface_hub
print(huggingface_hub.snapshot_download(sys.argv[1]), huggingface_hub.hf_hub_download(sys.argv[1], "config.json"))
"""


def test_huggingface_hub_finds_snapshot_and_file_in_the_hub_layout(served, tmp_path):
    done = subprocess.run([sys.executable, "-c", SNAPSHOT, "org/llama"], check=True, capture_output=True, text=True,
                          cwd=tmp_path, env=offline_environment(served, tmp_path))
    snapshot, file = done.stdout.split()
    base = str(served / ".hub/models--org--llama/snapshots")
    assert snapshot.startswith(base) and file.startswith(base)


def test_tokenizer_of_minilm_reads_the_same_ids(served, local):
    text = "A model at a path: mount, read, and every real loader happy."
    tokenizers = [transformers.AutoTokenizer.from_pretrained(str(root / "org/minilm")) for root in (served.path, local)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


def test_generation_from_the_mount_equals_the_local_copy(served, local):
    tokens = []
    for root in (served.path, local):
        model = transformers.AutoModelForCausalLM.from_pretrained(str(root / "org/llama"))
        tokens.append(model.generate(torch.arange(3, 11)[None], max_new_tokens=8, do_sample=False))
    assert torch.equal(*tokens)
