#!/usr/bin/env python3
"""What the reference package says of the mutants of tests/unit/test_safetensors_mutants.c, and how this program's verdicts
compare: tests/interop/safetensors_verdicts.py [OUT.jsonl]. Needs the package safetensors, and that test built."""
import datetime, hashlib, json, os, re, struct, subprocess, sys, tempfile
import safetensors

TEST, VERDICTS = "build/tests/unit/test_safetensors_mutants", "tests/unit/safetensors_verdicts.txt"


def accepts(mutant):
    try:
        safetensors.deserialize(mutant)
        return True
    except BaseException as e:  # a panic of the library is no Exception
        if isinstance(e, KeyboardInterrupt):
            raise
        return False


os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
with tempfile.TemporaryDirectory() as folder:
    dump = os.path.join(folder, "mutants")
    subprocess.run([TEST], env={**os.environ, "SAFETENSORS_DUMP": dump}, check=True, stdout=subprocess.DEVNULL)
    data = open(dump, "rb").read()
at, verdicts = 0, ""
while at < len(data):
    (n,) = struct.unpack_from("<I", data, at)
    verdicts += "01"[accepts(data[at + 4 : at + 4 + n])]
    at += 4 + n
with open(VERDICTS, "w") as f:
    f.write(f"{hashlib.sha1(data).hexdigest()}\n{verdicts}\n")
out = subprocess.run([TEST], capture_output=True, text=True)
print(out.stdout + out.stderr)
both, neither = map(int, re.search(r"accepted by both (\d+), refused by both (\d+)", out.stdout).groups())
row = {"what": "verdicts on damaged .safetensors files", "reference": "safetensors " + safetensors.__version__, "date": str(datetime.date.today()),
       "command": "tests/interop/safetensors_verdicts.py", "mutants": len(verdicts), "accepted_by_both": both, "refused_by_both": neither,
       "laxer": verdicts.count("0") - neither, "stricter": {r: int(n) for n, r in re.findall(r"stricter (\d+): (.*)", out.stdout)}}
if len(sys.argv) > 1:
    with open(sys.argv[1], "a") as f:
        f.write(json.dumps(row) + "\n")
print(json.dumps(row))
sys.exit(out.returncode)
