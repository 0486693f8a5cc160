"""How close ``ehr-tokenize`` comes to the least that tokenizing the same Parquet files can cost.

Generated MEDS records (visits with lognormal sizes, Zipf codes, half of the events with a number) are tokenized in
turn by the command, from the command line, and by a floor: Polars and numpy do the same reading, sort check, counting,
deciles and interval tokens and write flat arrays, without row checks, static prefix, digests, manifest or recovery.
Both are whole processes of one worker with the same number of threads, start of Python included. CPU seconds are the
figure to compare on a machine that others use.

python benchmarks/tokenize.py [--events 6000000] [--rounds 3] [--threads 1] [--folder DIR]
    --events 1000000 6000000 30000000    how time and memory grow; shards have at most 600,000 events
    --workers 2                          the command with a pool of processes, too
    --mtd VENV                           the preprocessing of meds-torch-data, installed in a virtual environment
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = {"train": 8, "tuning": 1, "held_out": 1}
SHARD = 600_000
"""Events of a shard, at most."""
MINUTE = 60_000_000
BOUNDS = [5, 15, 45, 75, 120, 180, 300, 480, 720, 1080, 1440, 2880, 5760, 10080, 17280, 28800, 43200, 86400, 259200]
COMMAND = "import sys; from ehr_tokenize.plugin import main; sys.exit(main())"


def generate(folder: Path, events: int, seed: int = 0) -> None:
    """Write the dataset: at least ten shards, about 300 events a subject, 3,000 codes."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    code_class = rng.choice(["DX", "RX", "LAB", "VITAL", "PROC"], 3000, p=[0.4, 0.27, 0.22, 0.01, 0.1])
    names = np.array([f"{kind}//{number:05d}" for number, kind in enumerate(code_class)])
    weight = rng.permutation(1.0 / np.arange(1, 3001) ** 1.1) * np.isin(code_class, ["LAB", "VITAL"]).choose([1, 4])
    numeric = np.isin(code_class, ["LAB", "VITAL"])
    repeat = max(1, -(-events // (SHARD * sum(SHARES.values()))))
    rows = events // (repeat * sum(SHARES.values()))
    first, splits = 0, []
    for split, share in SHARES.items():
        for shard in range(share * repeat):
            path = folder / "data" / split / f"{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            subjects = max(1, round(rows / 300))
            table = _shard(rng, subjects, rows, names, weight / weight.sum(), numeric, first)
            table.write_parquet(path)
            ids = table["subject_id"].unique().sort()
            splits.append(pl.DataFrame({"subject_id": ids, "split": [split] * len(ids)}))
            first += subjects
    _metadata(folder / "metadata", [*names.tolist(), "GENDER//F", "GENDER//M"], pl.concat(splits))


def _metadata(folder: Path, codes: list[str], splits) -> None:  # type: ignore[no-untyped-def]
    import polars as pl

    folder.mkdir()
    described = {
        "code": codes,
        "description": codes,
        "parent_codes": pl.Series([None] * len(codes), dtype=pl.List(pl.String)),
    }
    pl.DataFrame(described).write_parquet(folder / "codes.parquet")
    splits.write_parquet(folder / "subject_splits.parquet")
    facts = {"dataset_name": "generated", "dataset_version": "1", "meds_version": "0.4.1"}
    (folder / "dataset.json").write_text(json.dumps(facts))


def _shard(rng, subjects, events, names, weight, numeric, first):  # type: ignore[no-untyped-def]
    import numpy as np
    import polars as pl

    share = rng.lognormal(0, 1, subjects)
    owner = np.sort(rng.choice(subjects, events, p=share / share.sum()))
    # About six events an instant, instants of a visit an hour apart, visits months apart.
    step = np.where(rng.random(events) < 0.02, rng.exponential(100 * 1440, events), rng.exponential(60, events))
    step[rng.random(events) < 0.8] = 0
    start = np.flatnonzero(np.diff(owner, prepend=-1))
    minute = np.cumsum(step.astype(np.int64))
    minute -= np.repeat(minute[start], np.diff(start, append=events))
    code = rng.choice(len(names), events, p=weight)
    value = np.round(rng.lognormal(1 + code % 7 / 3, 0.4), 2).astype(np.float32)
    body = pl.DataFrame(
        {"subject_id": owner + first, "time": minute * MINUTE, "code": names[code], "numeric_value": value}
    )
    body = body.with_columns(
        pl.col("time").cast(pl.Datetime("us")),
        pl.when(pl.Series(numeric[code])).then("numeric_value"),
    )
    known = pl.DataFrame({"subject_id": np.unique(owner) + first}).select(
        "subject_id",
        pl.lit(None, pl.Datetime("us")).alias("time"),
        pl.Series(rng.choice(["GENDER//F", "GENDER//M"], len(start))).alias("code"),
        pl.lit(None, pl.Float32).alias("numeric_value"),
    )
    return pl.concat([known, body]).sort("subject_id", "time", maintain_order=True)


def floor(folder: Path, output: Path) -> None:
    """The floor, in this process."""
    import numpy as np
    import polars as pl

    paths = sorted((folder / "data").glob("*/*.parquet"))
    train = pl.concat(
        [pl.read_parquet(p, columns=["code", "numeric_value"]) for p in paths if p.parent.name == "train"]
    )
    deciles = [pl.col("numeric_value").quantile(q / 10).alias(f"b{q}") for q in range(1, 10)]
    fitted = train.group_by("code").agg(pl.len().alias("n"), *deciles).sort(-pl.col("n").cast(pl.Int64), "code")
    del train
    codes = fitted["code"].to_list()
    book = pl.Enum(codes)
    breaks = [fitted[f"b{q}"].fill_null(float("inf")).to_numpy() for q in range(1, 10)]
    has = fitted["b1"].is_not_null().to_numpy()
    for path in paths:
        events = pl.read_parquet(path).filter(pl.col("time").is_not_null())
        events = events.with_columns(pl.col("code").cast(book, strict=False)).drop_nulls("code")
        subject, at = events["subject_id"].to_numpy(), events["time"].to_physical().to_numpy()
        assert ((subject[1:] > subject[:-1]) | ((subject[1:] == subject[:-1]) & (at[1:] >= at[:-1]))).all()
        code = events["code"].to_physical().to_numpy()
        value = events["numeric_value"].fill_null(float("nan")).to_numpy()
        row = np.flatnonzero(has[code] & ~np.isnan(value))
        quantile = np.zeros(len(code), np.int64)
        quantile[row] = 1 + sum((b[code[row]] < value[row]).astype(np.int64) for b in breaks)
        gap = np.diff(at, prepend=at[:1])
        gap[1:][subject[1:] != subject[:-1]] = 0
        interval = np.searchsorted(np.array(BOUNDS) * MINUTE, gap, side="right")
        size = 1 + (quantile > 0) + (interval > 0)
        end = np.cumsum(size)
        token = np.empty(end[-1], np.uint16)
        token[(end - size)[interval > 0]] = len(codes) + 10 + interval[interval > 0]
        token[end - 1 - (quantile > 0)] = code
        token[end[quantile > 0] - 1] = len(codes) + quantile[quantile > 0]
        place = output / path.parent.name / path.stem
        place.mkdir(parents=True)
        np.save(place / "token.npy", token)
        np.save(place / "time.npy", np.repeat(at, size))
        np.save(place / "offset.npy", (end - size)[np.flatnonzero(np.diff(subject, prepend=-1))])


def measure(command: list[str], threads: int, first: str = "") -> tuple[float, float, float]:
    """Wall seconds, CPU seconds (of all its processes) and peak memory in MB (of the largest) of a command."""
    names = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join(part for part in (first, os.environ.get("PATH", "")) if part)
    environment = os.environ | {name: str(threads) for name in names} | {"PATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pip compiles what it installs
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def commands(folder: Path, out: Path, workers: int, mtd: Path | None) -> dict[str, list[str]]:
    """Name to command line."""
    ours = [sys.executable, "-c", COMMAND, "source=meds", f"source.path={folder}", f"output={out}"]
    found = {
        "floor": [sys.executable, str(Path(__file__).resolve()), "--floor", str(folder), str(out)],
        "ehr-tokenize": ours,
    }
    if workers > 1:
        found[f"{workers} processes"] = [*ours, "executor=processes", f"executor.num_workers={workers}"]
    if mtd:
        program = str(mtd.resolve() / "bin" / "MTD_preprocess")
        found["meds-torch-data"] = [program, f"MEDS_dataset_dir={folder}", f"output_dir={out}"]
    return found


def compare(folder: Path, scratch: Path, rounds: int, threads: int, workers: int, mtd: Path | None) -> None:
    """Measure all in alternation and print medians, and ratios to the floor."""
    out = scratch / "out"
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for name, command in commands(folder, out, workers, mtd).items():
            shutil.rmtree(out, ignore_errors=True)
            found.setdefault(name, []).append(measure(command, threads, str(mtd.resolve() / "bin") if mtd else ""))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    columns = "".join(f"{name:>9}" for name in ("wall s", "CPU s", "peak MB", "x wall", "x CPU"))
    print(f"{'':16}{columns}   median of {rounds}, {threads} thread(s)")
    for name, (wall, cpu, memory) in medians.items():
        times = (wall / medians["floor"][0], cpu / medians["floor"][1])
        print(f"{name:16}{wall:9.2f}{cpu:9.2f}{memory:9.0f}{times[0]:9.2f}{times[1]:9.2f}", flush=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[6_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mtd", type=Path, metavar="VENV")
    parser.add_argument("--folder", type=Path, help="keep the generated records here, a folder a size, and reuse them")
    parser.add_argument("--floor", type=Path, nargs=2, metavar=("MEDS", "OUTPUT"), help="run only the floor")
    given = parser.parse_args()
    if given.floor:
        floor(*given.floor)
        return 0
    with tempfile.TemporaryDirectory() as name:
        for events in given.events:
            folder = (given.folder or Path(name)) / str(events)
            if not (folder / "metadata").is_dir():
                generate(folder, events)
            shards = len(list((folder / "data").glob("*/*.parquet")))
            print(f"{events:,} events in {shards} shards")
            compare(folder, Path(name), given.rounds, given.threads, given.workers, given.mtd)
            if not given.folder:
                shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
