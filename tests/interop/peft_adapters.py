#!/usr/bin/env python3
"""Loads adapters that qlora wrote (LoRA, rsLoRA, DoRA, whole modules) with PEFT, on the CPU, and compares with `qlora score`.

    tests/interop/adapters.sh OUT          anywhere: models, adapters, expected log-probabilities
    tests/interop/peft_adapters.py OUT     where torch, transformers and peft are

In fp32 throughout, so the two sums differ by rounding alone. Of an adapter at its start the magnitudes are compared with those
that PEFT makes itself. Prints one JSON line per case and exits 1 if one is off.
"""
import json, os, sys
import torch, torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

if not hasattr(F, "scaled_dot_product_attention"):  # torch before 2.0
    def attention(q, k, v, is_causal):
        n = q.shape[-2]
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + torch.full((n, n), float("-inf")).triu(1)
        return torch.softmax(score, -1) @ v

    F.scaled_dot_product_attention = attention

from peft_bnb import YuanConfig, YuanForCausalLM

out = sys.argv[1]
rows = [json.loads(line)["ids"] for line in open(f"{out}/ids.jsonl")]


def base(folder):
    config = json.load(open(f"{folder}/config.json"))
    config["model_type"] = "yuan"
    model = YuanForCausalLM(YuanConfig(**config)).float().eval()
    weights = load_file(f"{folder}/model.safetensors")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.lm_head.weight = model.model.embed_tokens.weight
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model


def logprobs(model, ids):
    with torch.no_grad():
        p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return [float(p[i, ids[i + 1]]) for i in range(len(ids) - 1)]


failed = 0
for line in open(f"{out}/cases"):
    name, folder = line.split()
    model = PeftModel.from_pretrained(base(f"{out}/{folder}"), f"{out}/{name}").eval()
    expected = [json.loads(l)["logprobs"][1:] for l in open(f"{out}/{name}.jsonl")]
    apart, merged = ([logprobs(m, r) for r in rows] for m in (model, model.merge_and_unload())) if not name.startswith("whole") else ([logprobs(model, r) for r in rows], None)
    result = {"case": name, "largest_difference": max(abs(a - b) for x, y in zip(apart, expected) for a, b in zip(x, y))}
    if merged:
        result["merged_difference"] = max(abs(a - b) for x, y in zip(merged, expected) for a, b in zip(x, y))
    if name == "dora-start":
        own = get_peft_model(base(f"{out}/{folder}"), LoraConfig(r=8, use_dora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        ours = load_file(f"{out}/{name}/adapter_model.safetensors")
        theirs = {k.replace(".default", "").removesuffix(".weight"): v for k, v in own.named_parameters() if "magnitude" in k}
        assert len(theirs) == sum("magnitude" in k for k in ours)
        result["magnitude_difference"] = max(float(((ours[k] - v.detach().flatten()) / v.detach().flatten()).abs().max()) for k, v in theirs.items())
    result["ok"] = all(v < 2e-4 for k, v in result.items() if k != "case")
    failed |= not result["ok"]
    print(json.dumps(result), flush=True)
sys.exit(failed)
