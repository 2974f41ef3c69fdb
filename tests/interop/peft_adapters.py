#!/usr/bin/env python3
"""Loads adapters that qlora wrote (LoRA, rsLoRA, DoRA, whole modules) with PEFT and its merged checkpoints with transformers, on
the CPU, and compares with `qlora score`; then lets `qlora score` load adapters that PEFT wrote.

    tests/interop/adapters.sh OUT                    anywhere: models, adapters, merged checkpoints, expected log-probabilities
    tests/interop/peft_adapters.py OUT [PROGRAM]     where torch, transformers and peft are; with PROGRAM also the other way

Computed in fp32 throughout, whatever the type of the files, so the two sides differ by rounding alone. A merged checkpoint is also
compared with the adapter that PEFT adds apart: there the type's rounding of the weights counts. Of an adapter at its start the
magnitudes are compared with those that PEFT makes itself. With $QLORA_SHARED the class below is held to the numbers that the
official model code gave (goldens/yuan2-tiny-a). Prints one JSON line per case and exits 1 if one is off.
"""
import json, os, subprocess, sys
import torch, torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig

if not hasattr(F, "scaled_dot_product_attention"):  # torch before 2.0
    def attention(q, k, v, is_causal):
        n = q.shape[-2]
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + torch.full((n, n), float("-inf")).triu(1)
        return torch.softmax(score, -1) @ v

    F.scaled_dot_product_attention = attention

from peft_bnb import YuanConfig, YuanForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
out = sys.argv[1]
rows = [json.loads(line)["ids"] for line in open(f"{out}/ids.jsonl")]


def base(folder, weights=None):
    config = json.load(open(f"{folder}/config.json"))
    config["model_type"] = "yuan"
    model = YuanForCausalLM(YuanConfig(**config)).float().eval()
    weights = weights or load_file(f"{folder}/model.safetensors")
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


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def apart(xs, ys):
    return max(abs(a - b) for x, y in zip(xs, ys) for a, b in zip(x, y))


def scores(path):
    return [json.loads(line)["logprobs"][1:] for line in open(path)]


failed = 0


def report(result, **limits):
    """limits: what a number may be at most; 2e-4 where nothing is said: a wrong scale or order is a hundred times that."""
    global failed
    result["ok"] = all(v <= limits.get(k, 2e-4) for k, v in result.items() if isinstance(v, float))
    failed |= not result["ok"]
    print(json.dumps({k: float(f"{v:.2g}") if isinstance(v, float) else v for k, v in result.items()}), flush=True)


def official_numbers(folder):
    """The class against the official model code, of which the golden files hold weights, ids and logits."""
    weights = {k: v.clone() for k, v in torch.load(f"{folder}/fp32/pytorch_model.bin", weights_only=True).items() if "inv_freq" not in k}
    inputs, expected = load_file(f"{folder}/inputs.safetensors"), load_file(f"{folder}/expected_full.safetensors")
    model = base(f"{folder}/fp32", weights)
    for n in (17, 40):
        report({"case": f"official logits_{n}", "largest_difference": float((logits(model, inputs[f"ids_{n}"].tolist()) - expected[f"logits_{n}"]).abs().max())})


def adapter_of_ours(name, folder):
    model = PeftModel.from_pretrained(base(f"{out}/{folder}"), f"{out}/{name}").eval()
    expected = scores(f"{out}/{name}.jsonl")
    result = {"case": name, "largest_difference": apart([logprobs(model, r) for r in rows], expected)}
    if not name.startswith("whole"):
        merged = model.merge_and_unload()
        result["merged_difference"] = apart([logprobs(merged, r) for r in rows], expected)
    if name == "dora-start":
        own = get_peft_model(base(f"{out}/{folder}"), LoraConfig(r=8, use_dora=True, target_modules=PROJECTIONS))
        ours = load_file(f"{out}/{name}/adapter_model.safetensors")
        theirs = {k.replace(".default", "").removesuffix(".weight"): v for k, v in own.named_parameters() if "magnitude" in k}
        assert len(theirs) == sum("magnitude" in k for k in ours)
        result["magnitude_difference"] = max(float(((ours[k] - v.detach().flatten()) / v.detach().flatten()).abs().max()) for k, v in theirs.items())
    report(result)


def merged_by_us(name, adapter, folder):
    """Loaded by transformers as people do, shards and all. Weights of this size rounded to bf16 move a log-probability by some 0.01."""
    model = YuanForCausalLM.from_pretrained(f"{out}/{name}", dtype=torch.float32).eval()
    have, unmerged = [logprobs(model, r) for r in rows], scores(f"{out}/{adapter}.jsonl")
    of_type = {"fp32": 2e-4, "fp16": 1e-2, "bf16": 8e-2}[name.rsplit("-", 1)[1]]
    report({"case": name, "largest_difference": apart(have, scores(f"{out}/{name}.jsonl")), "to_unmerged": apart(have, unmerged)}, to_unmerged=of_type)


def adapter_of_peft(name, folder, program, **config):
    """Every tensor of the adapter random, its magnitudes changed, saved by PEFT, scored by the program."""
    torch.manual_seed(7)
    model = get_peft_model(base(f"{out}/{folder}"), LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": PROJECTIONS, **config})).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_A" in key or "lora_B" in key:
                p.copy_(torch.randn_like(p) * 0.1)
            if "magnitude" in key or "modules_to_save" in key:
                p.mul_(1 + 0.2 * torch.randn_like(p))
    model.save_pretrained(f"{out}/peft-{name}")
    said = subprocess.run([program, "score", "--model_name_or_path", f"{out}/{folder}", "--adapter_name_or_path", f"{out}/peft-{name}", "--file", f"{out}/ids.jsonl", "--quiet"],
                          capture_output=True, text=True, check=True).stdout
    plain = base(f"{out}/{folder}")
    result = [logprobs(model, r) for r in rows]
    assert apart(result, [logprobs(plain, r) for r in rows]) > 0.1, "the adapter changes nothing"
    report({"case": f"written by PEFT: {name}", "largest_difference": apart(result, [json.loads(l)["logprobs"][1:] for l in said.splitlines()])})


AutoConfig.register("yuan", YuanConfig)
if "QLORA_SHARED" in os.environ:
    official_numbers(f"{os.environ['QLORA_SHARED']}/goldens/yuan2-tiny-a")
for line in open(f"{out}/cases"):
    adapter_of_ours(*line.split())
for line in open(f"{out}/merged"):
    merged_by_us(*line.split())
if len(sys.argv) > 2:
    for name, folder, config in [("lora", "tied-true", {}), ("rslora", "tied-true", {"use_rslora": True}), ("dora", "tied-true", {"use_dora": True}),
                                 ("some", "tied-true", {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"q_proj": 32}}),
                                 ("whole", "tied-false", {"modules_to_save": ["embed_tokens", "lm_head"]}),
                                 ("whole-dora", "tied-false", {"use_dora": True, "modules_to_save": ["model.norm", "lm_head"]})]:
        adapter_of_peft(name, folder, sys.argv[2], **config)
sys.exit(failed)
