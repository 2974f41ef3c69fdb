#!/usr/bin/env python3
"""Trains the adapter that a qlora run trained, with transformers, bitsandbytes and PEFT, and compares the loss of every step.

    tests/interop/train.sh OUT PROGRAM        on a machine with an NVIDIA card and these packages: both runs, then this
    tests/interop/train_bnb.py MODEL START DATA LOG MICRO ACCUMULATE RATE

Same weights (MODEL, quantised to NF4 on load by each side), start (the adapter START), data (DATA: JSON lines of input_ids of one
length, in order), AdamW and clipping to 0.5. Prints the mean absolute difference of the losses as JSON; exits 1 above 0.5 %.
"""
import json, os, sys
import torch, torch.nn.functional as F
from transformers import AutoConfig, BitsAndBytesConfig

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from peft_bnb import YuanConfig, YuanForCausalLM


def main(model_dir, start, data, log, micro, accumulate, rate):
    from peft import PeftModel

    micro, accumulate, rate = int(micro), int(accumulate), float(rate)
    AutoConfig.register("yuan", YuanConfig)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = YuanForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16, quantization_config=nf4, device_map={"": 0})
    model = PeftModel.from_pretrained(model, start, is_trainable=True)
    train = [p for p in model.parameters() if p.requires_grad]
    for p in train:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(train, lr=rate, weight_decay=0.0)
    rows = [json.loads(line)["input_ids"] for line in open(data)]
    ours = [r["loss"] for r in map(json.loads, open(log)) if "loss" in r and "current_steps" in r]
    difference = relative = 0.0
    theirs = []
    for step, want in enumerate(ours):
        total = 0.0
        for k in range(accumulate):
            first = (step * accumulate + k) * micro
            ids = torch.tensor(rows[first : first + micro], device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(input_ids=ids).logits
            loss = F.cross_entropy(logits[:, :-1].float().reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)) / accumulate
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(train, 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        theirs.append(round(total, 4))
        difference += abs(total - want) / len(ours)
        relative += abs(total - want) / want / len(ours)
    print(json.dumps(dict(steps=len(ours), first=[ours[0], theirs[0]], last=[ours[-1], theirs[-1]], mean_difference=round(difference, 5), relative=round(relative, 6),
                          ours=ours[::10], theirs=theirs[::10])), flush=True)
    return not (len(ours) >= 100 and relative <= 0.005)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
