#!/usr/bin/env python3
"""Writes tests/golden/torch-VERSION.bin with the torch at hand: tests/interop/torch_bin.py. tests/golden/test_torch_versions.c
knows what each of its tensors holds: BITS[i] are the low bits of (i + 1) * 0x9e3779b97f4a7c15, so NaNs and infinities too."""
import collections, os, torch

WIDTH = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.float64: 8, torch.uint8: 1, torch.int8: 1, torch.int32: 4, torch.int64: 8, torch.bool: 1}


def bits(dtype, n):
    raw = b"".join((((i + 1) * 0x9E3779B97F4A7C15 >> 3) & (2 ** 64 - 1)).to_bytes(8, "little")[: WIDTH[dtype]] for i in range(n))
    if dtype == torch.bool:
        raw = bytes(b & 1 for b in raw)
    return torch.frombuffer(bytearray(raw), dtype=dtype).clone()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(bits(torch.float32, 12).reshape(3, 4))
        self.register_buffer("b", bits(torch.bfloat16, 12).reshape(3, 4))
        self.inner = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.inner.weight.copy_(bits(torch.float32, 12).reshape(3, 4))
            self.inner.bias.copy_(bits(torch.float32, 3))


state = Model().state_dict()  # an OrderedDict with attributes
for t in WIDTH:
    state["type." + str(t)[6:]] = bits(t, 24).reshape(2, 3, 4)
whole = bits(torch.float32, 60).reshape(6, 10)
state["view.whole"] = whole
state["view.rows"] = whole[2:4]
state["view.columns"] = whole[:, 3:7]
state["view.transposed"] = whole.t()
state["view.every_other"] = whole[::2, 1::3]
state["view.expanded"] = whole[1:2].expand(4, 10)
state["view.permuted"] = bits(torch.float16, 24).reshape(2, 3, 4).permute(2, 0, 1)
state["scalar"] = bits(torch.float32, 1)[0]
state["empty"] = torch.empty(0, 5, dtype=torch.bfloat16)
state["parameter"] = torch.nn.Parameter(bits(torch.bfloat16, 6).reshape(2, 3), requires_grad=True)
version = ".".join(torch.__version__.split("+")[0].split(".")[:2])
os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../golden"))
torch.save(state, f"torch-{version}.bin")
torch.save({k: v.clone() for k, v in state.items() if k.startswith("type.")}, f"torch-{version}-dict.bin")
print(f"torch-{version}.bin", os.path.getsize(f"torch-{version}.bin"))
