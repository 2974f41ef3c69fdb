#!/usr/bin/env python3
"""Do the tests notice bugs? tests/mutants/run.py [WORD|LINE..]: each small bug of list.txt (those with the WORDs in them, or at
these LINEs) is put into a copy of the sources, its tests are built and run, and one of them must fail within 240 s or not end. A
bug whose old text no longer stands there exactly once, or which does not compile, is a failure of the list. WORK=DIR: the copy
(build/mutants); SURVIVORS=N: as many may live (5). The last line is "N passed, N failed, N skipped"; every line before tells of
one bug."""
import os, pathlib, subprocess, sys, time

root = pathlib.Path(__file__).resolve().parents[2]
work = pathlib.Path(os.environ.get("WORK", root / "build/mutants"))
allowed = int(os.environ.get("SURVIVORS", "5"))


def read_list():
    bugs, bug = [], None
    for number, line in enumerate((root / "tests/mutants/list.txt").read_text().splitlines(), 1):
        if line.startswith("-") and bug:
            bug["old"].append(line[1:])
        elif line.startswith("+") and bug:
            bug["new"].append(line[1:])
        elif line.strip() and not line.startswith("#"):
            file, tests = line.split(": ")
            bug = {"line": number, "file": file, "tests": tests.split(), "old": [], "new": []}
            bugs.append(bug)
    words = [w for w in sys.argv[1:] if not w.isdigit()]
    lines = [int(w) for w in sys.argv[1:] if w.isdigit()]
    return [b for b in bugs if (not lines or b["line"] in lines) and all(w in b["file"] + " " + " ".join(b["tests"] + b["old"]) for w in words)]


def run(command, limit=300, **more):
    """Exit status; 124 after the limit."""
    with open(work / "log", "w") as log:
        try:
            return subprocess.run(command, cwd=work, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=limit, **more).returncode
        except subprocess.TimeoutExpired:
            return 124


def target(test):
    return "build/tests/" + test if not test.endswith(".sh") else None


def build(tests):
    targets = [target(t) for t in tests if target(t)]
    if any(t.endswith(".sh") for t in tests):
        targets += ["qlora", "build/tests/run/nan_card.so", "build/examples/demo/make_data", "build/examples/demo/make_tokenizer"]
    return run(["make", "-j2", "CUDA=0", "CFLAGS=-O1 -g0"] + targets, 900)


def fails(test):
    env = {**os.environ, "OMP_NUM_THREADS": "2", "QLORA_SHARED": str(root.parent / "shared"), "TOOLS": "build/examples/demo", "QLORA": "./qlora"}
    if "QLORA_SHARED" in os.environ:
        env["QLORA_SHARED"] = os.environ["QLORA_SHARED"]
    return run(["./" + (target(test) or "tests/" + test)], 240, env=env) != 0


def copy():
    """The sources as they are; build products of an earlier run stay."""
    work.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        source, to = root / name, work / name
        if not source.is_file():
            continue
        data = source.read_bytes()
        if to.is_file() and to.read_bytes() == data:
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)
        to.chmod(source.stat().st_mode)


def judge(bug):
    path = work / bug["file"]
    whole, old = path.read_text(), "\n".join(bug["old"])
    if whole.count(old) != 1:
        return "does not apply"
    path.write_text(whole.replace(old, "\n".join(bug["new"])))
    try:
        if build(bug["tests"]):
            return "does not build"
        killer = next((t for t in bug["tests"] if fails(t)), None)
    finally:
        path.write_text(whole)
    if killer and killer not in sound:  # does it pass without the bug?
        if build([killer]) or fails(killer):
            return f"does not count: {killer} fails without it too"
        sound.add(killer)
    return "killed by " + killer if killer else "SURVIVED"


copy()
bugs = read_list()
sound = set()
if build(sorted({t for b in bugs for t in b["tests"]})):
    print((work / "log").read_text()[-3000:])
    sys.exit("the sources do not build")
killed = survived = unfit = 0
for bug in bugs:
    start = time.time()
    verdict = judge(bug)
    killed += verdict.startswith("killed")
    survived += verdict == "SURVIVED"
    unfit += verdict.startswith("does not")
    print(f"{verdict:32} {bug['file']}:  {' '.join(bug['old']).strip()[:90]}   (list.txt:{bug['line']}, {time.time() - start:.0f} s)", flush=True)
print(f"{len(bugs)} bugs: {killed} killed, {survived} survived, {unfit} unfit")
too_many = survived > allowed or unfit
print(f"{killed} passed, {survived + unfit if too_many else 0} failed, {0 if too_many else survived} skipped")
sys.exit(bool(too_many))
