"""Coverage-guided fuzzing of the readers with Atheris (`pip install atheris`, Linux).

    PYTHONPATH=. python benchmarks/fuzz/run.py --inputs 100000 --out fuzz.csv
    PYTHONPATH=. python benchmarks/fuzz/run.py --inputs 100000 --reader plan

Each reader runs in a process of its own. An input that breaks one is kept under `crashes/` and the
run of that reader stops there; the figures say so.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = ("reader", "inputs", "seconds", "edges", "slowest_s", "crash")
SLOW_S = 10
_DONE = re.compile(r"#(\d+)\s+(?:DONE|REDUCE|NEW|pulse|INITED|RELOAD).*?cov: (\d+)")


def main() -> None:
    """Fuzz one reader in this process, or each in its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", default="", help="one reader instead of all")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz.csv"))
    parser.add_argument("--inside", action="store_true", help="be the fuzzing process")
    asked = parser.parse_args()
    if asked.inside:
        _fuzz(asked.reader, asked.inputs, asked.seed)
        return
    from readers import READERS

    names = [asked.reader] if asked.reader else [reader.name for reader in READERS]
    for name in names:
        row = _one(name, asked.inputs, asked.seed)
        print(row, flush=True)
        _append(asked.out, row)


def _append(path: Path, row: dict[str, object]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def _one(name: str, inputs: int, seed: int) -> dict[str, object]:
    """Fuzz a reader in a process of its own; what it came to."""
    start = time.monotonic()
    words = [sys.executable, str(Path(__file__).resolve()), "--inside", "--reader", name]
    words += ["--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    found = _DONE.findall(done.stderr)
    slowest = re.findall(r"slowest (\d+\.\d+)", done.stderr)
    crash = re.findall(
        r"(BROKEN .*|Uncaught Python exception.*\n.*|ERROR: libFuzzer.*)", done.stderr
    )
    if not crash and "DONE" not in done.stderr:
        crash = done.stderr.splitlines()[-1:] or ["no output"]
    return {
        "reader": name,
        "inputs": found[-1][0] if found else 0,
        "seconds": round(time.monotonic() - start),
        "edges": found[-1][1] if found else 0,
        "slowest_s": slowest[-1] if slowest else "",
        "crash": crash[0].replace("\n", " ")[:300] if crash else "",
    }


def _fuzz(name: str, inputs: int, seed: int) -> None:
    """The fuzzing process: instrument the package, then feed the reader."""
    import atheris

    with atheris.instrument_imports(include=["autoparallel"]):
        from readers import READERS, broken
    from mutate import mutated

    reader = next(r for r in READERS if r.name == name)
    folder = Path(
        tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    corpus, place = folder / "corpus", folder / f"input{reader.suffix}"
    corpus.mkdir()
    for number, content in enumerate(reader.seeds()):
        (corpus / str(number)).write_bytes(content)
    slowest = 0.0

    def one(data: bytes) -> None:
        nonlocal slowest
        given: object = data.decode("utf-8", "replace")
        if reader.suffix:
            place.write_bytes(data)
            given = place
        start = time.monotonic()
        wrong = broken(reader, given)
        taken = time.monotonic() - start
        if taken > slowest:
            slowest = taken
            print(f"slowest {slowest:.3f}", file=sys.stderr)
        if wrong or taken > SLOW_S:
            print(f"BROKEN {wrong or 'too slow'}", file=sys.stderr)
            raise AssertionError(wrong or "too slow")

    def mutate(data: bytes, longest: int, own_seed: int) -> bytes:
        rng = random.Random(own_seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        return mutated(data, reader.form, rng)[:longest]

    Path("crashes").mkdir(exist_ok=True)
    flags = [f"-runs={inputs}", f"-seed={seed}", f"-artifact_prefix=crashes/{name}-"]
    flags += ["-max_len=20000", "-timeout=30", "-rss_limit_mb=3000"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
