#!/usr/bin/env python3
"""Speed of the sentencepiece library on one core (CPU time, best of five), to compare with bench/tokenize.c.

    python3 -m venv VENV && VENV/bin/pip install sentencepiece
    VENV/bin/python bench/tokenize_peer.py TOKENIZER.model FILE...

Each file is encoded as one text and line by line (one call for all lines, on one thread)."""
import json
import sys
import time

import sentencepiece

ROUNDS = 5


def best(work):
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
for path in sys.argv[2:]:
    data = open(path, "rb").read()
    text = data.decode()
    lines = text.split("\n")
    whole_s, whole = best(lambda: processor.encode(text))
    lines_s, ids = best(lambda: processor.encode(lines, num_threads=1))
    line_tokens = sum(map(len, ids))
    print(json.dumps({
        "bench": "tokenize_peer", "sentencepiece": sentencepiece.__version__, "file": path, "bytes": len(data),
        "tokens": len(whole), "mb_per_s": round(len(data) / whole_s / 1e6, 1),
        "tokens_per_s": float("%.3g" % (len(whole) / whole_s)), "line_tokens": line_tokens,
        "line_mb_per_s": round(len(data) / lines_s / 1e6, 1),
        "line_tokens_per_s": float("%.3g" % (line_tokens / lines_s)),
    }))
