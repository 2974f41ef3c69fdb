# tests/interop/tensorboard_events.py - TensorBoard's own reader over the event files of a run; by hand:
#
#     python3 -m venv venv && venv/bin/pip install tensorboard
#     qlora train ... --output_dir out --val_size 0.1 --evaluation_strategy steps
#     venv/bin/python tests/interop/tensorboard_events.py out
#
# Every scalar of trainer_state.json must come back with its step and its value in single precision, and nothing else.
import json
import os
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

folder = sys.argv[1]
single = lambda x: struct.unpack("f", struct.pack("f", x))[0]

events = EventAccumulator(folder, size_guidance={"scalars": 0})
events.Reload()
read = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}

wanted = {}
state = json.load(open(os.path.join(folder, "trainer_state.json")))
for entry in state["log_history"]:
    if "train_runtime" in entry:
        continue
    for key, value in entry.items():
        if key == "step":
            continue
        if key == "epoch" and "eval_loss" in entry and entry["step"] in wanted.get("train/epoch", {}):
            continue
        tag = "eval/" + key[5:] if key.startswith("eval_") else "train/" + key
        wanted.setdefault(tag, {})[entry["step"]] = value

failed = 0
for tag in sorted(set(read) | set(wanted)):
    a, b = read.get(tag, {}), wanted.get(tag, {})
    # the state rounds: the loss to 4 digits, speeds to 3, and epochs to 2 with compat old
    near = lambda x, y: abs(x - single(y)) <= 1e-6 * abs(y) + (5.1e-3 if tag == "train/epoch" else 5.1e-4 if "per_second" in tag else 5.1e-5)
    good = a.keys() == b.keys() and all(near(a[s], b[s]) for s in a)
    failed += not good
    print("%-30s %4d points, %s" % (tag, len(a), "as in trainer_state.json" if good else "not as in trainer_state.json: %s / %s" % (a, b)))
print("tensorboard_events.py: %d passed, %d failed" % (len(read) - failed, failed))
sys.exit(failed != 0 or not read)
