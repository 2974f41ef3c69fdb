#!/usr/bin/env python3
"""Loads what qlora wrote with transformers, bitsandbytes and PEFT, and compares logits with `qlora score`.

    tests/interop/make.sh OUT          anywhere: model, NF4 and int8 checkpoints, adapter, expected log-probabilities
    tests/interop/peft_bnb.py OUT      where transformers, peft and bitsandbytes are; on the card, or without one on the processor

Yuan is not part of transformers; the class below is the architecture with the checkpoint's names, in the way a custom
model is registered. Prints one JSON line per case and exits 1 if one is off.
"""
import json, math, sys
import torch, torch.nn as nn, torch.nn.functional as F
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class YuanConfig(PretrainedConfig):
    model_type = "yuan"


class Norm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        r = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * r).to(x.dtype)


class Filter(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv1 = nn.Conv2d(d, d // 2, (2, 1), padding=(1, 0))
        self.conv2 = nn.Conv2d(d // 2, d, (2, 1), padding=(1, 0))
        self.output_layernorm = Norm(d, 1e-6)

    def forward(self, a):
        n = a.shape[1]
        u = self.conv1(a.transpose(1, 2).unsqueeze(-1))[:, :, :n]
        z = self.conv2(u)[:, :, :n]
        return self.output_layernorm(z.squeeze(-1).transpose(1, 2) + a)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c.hidden_size
        self.heads, self.lf_gate = c.num_attention_heads, Filter(d)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(d, d, bias=False))

    def forward(self, a):
        b, n, d = a.shape
        k = d // self.heads
        v = self.v_proj(a).view(b, n, self.heads, k).transpose(1, 2)
        f = self.lf_gate(a)
        qk = torch.cat([self.q_proj(f), self.k_proj(f)], -1).view(b, n, self.heads, 2 * k)
        q, key = (self.rotate(t.transpose(1, 2)) for t in qk.chunk(2, -1))
        o = F.scaled_dot_product_attention(q, key, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(b, n, d))

    @staticmethod
    def rotate(x):
        k, n = x.shape[-1], x.shape[-2]
        angle = torch.arange(n, device=x.device).float()[:, None] * 10000 ** (-torch.arange(0, k, 2, device=x.device).float() / k)
        cos, sin = torch.cat([angle.cos()] * 2, -1).to(x.dtype), torch.cat([angle.sin()] * 2, -1).to(x.dtype)
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class YuanModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class YuanForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = YuanConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = YuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, **_):
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.lm_head(self.model.norm(x)))


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], device=DEVICE)).logits[0].float()
    p = torch.log_softmax(logits, -1)
    return [float(p[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def weight_only(layer, x):
    """int8 weights as qlora uses them: decoded to bf16. (LLM.int8 would also round the activations, its own choice.)"""
    q, scale = layer.weight.data, layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return F.linear(x, (q.float() * (scale.float() / 127)[:, None]).to(x.dtype))


def decoded(layer, x):
    """4-bit weights as bitsandbytes decodes them. (On a processor with AVX512-BF16 its product rounds the scales to bf16 first.)"""
    from bitsandbytes.functional import dequantize_4bit

    return F.linear(x, dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(x.dtype))


def main(out):
    import bitsandbytes
    from peft import PeftModel

    bitsandbytes.nn.Linear8bitLt.forward = weight_only
    if DEVICE == "cpu":
        bitsandbytes.nn.Linear4bit.forward = decoded
    AutoConfig.register("yuan", YuanConfig)
    bad = 0
    for case in json.load(open(f"{out}/cases.json")):
        model = YuanForCausalLM.from_pretrained(f"{out}/{case['model']}", dtype=torch.bfloat16, device_map={"": DEVICE})
        kind = type(model.model.layers[0].self_attn.q_proj).__name__
        if case["adapter"]:
            model = PeftModel.from_pretrained(model, f"{out}/{case['adapter']}")
        model.eval()
        worst = mean = count = 0
        for line in open(f"{out}/{case['expected']}"):
            row = json.loads(line)
            have, want = logprobs(model, row["ids"]), row["logprobs"][1:]
            for a, b in zip(have, want):
                worst, mean, count = max(worst, abs(a - b)), mean + abs(a - b), count + 1
        mean /= count
        # bf16 keeps 8 bits: some 0.4 % of a logit at each of a few dozen roundings. A wrong scale, order or code is tens of times that.
        ok = math.isfinite(worst) and mean < 0.02 and worst < 0.15
        bad += not ok
        print(json.dumps(dict(model=case["model"], adapter=case["adapter"], linear=kind, tokens=count, mean_difference=round(mean, 5),
                              largest_difference=round(worst, 4), ok=ok)), flush=True)
    return bad != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
