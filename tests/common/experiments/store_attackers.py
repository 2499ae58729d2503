"""The processes of test_store_under_attack.py: what they do to the store until they are killed.

Run as a script it is their parent: it imports everything once, starts no thread, and forks them.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable

from apps.experiments.deleting import unpack_experiment
from common.experiments import packing, parquet, store
from common.experiments.catalogue import Catalogue
from common.experiments.run import Run, start_experiment
from common.utils.manifest import environment_fingerprint
from common.utils.paths import get_experiments_dir

Say = Callable[[str], None]
packing.LOOSE_LIMIT, packing.PACK_SIZE = 12, 6


def value_of(generation: int, step: int) -> float:
    """What is logged at `step` by the `generation`-th process: no two rows of a run are alike."""
    return generation * 1e6 + step


# --- one process that is killed --------------------------------------------------------------------


def kill_one(order: dict[str, object]) -> dict[str, object]:
    """Fork a process that does `order`, kill it after a while; what it said until then."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            attack(order, lambda text: void(os.write(writing, f"{text}\n".encode())))
        except BaseException as error:  # it never ends by itself
            os.write(writing, f"error {error!r}\n".encode())
        os._exit(1)
    os.close(writing)
    said = b""
    until = time.monotonic() + float(str(order["seconds"]))
    killed = False
    while True:
        left = until - time.monotonic()
        if left <= 0 and not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
        if select.select([reading], [], [], None if killed else max(left, 0))[0]:
            if not (part := os.read(reading, 1 << 16)):
                break
            said += part
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    return {"said": said.decode().splitlines(), "killed": status == signal.SIGKILL}


def void(_: object) -> None:
    return None


def attack(order: dict[str, object], say: Say) -> None:
    work = {"append": append, "finish": finish, "catalogue": catalogue, "pack": pack}
    work[str(order["work"])](order, say)


def append(order: dict[str, object], say: Say) -> None:
    """Log for ever, to a new run or to one that was killed before."""
    generation, name = int(str(order["generation"])), str(order["name"])
    if order["resume"]:
        run = start_experiment(name, resume=True)
        rows = max(0, run.rows - generation % 4)
        say(f"resumes {rows}")
        run.resume_from(rows)
        say(f"resumed {rows}")
    else:
        run = begin(name, say)
    log(run, generation, 10**9, say)


def begin(name: str, say: Say) -> Run:
    say(f"begins {name}")
    return start_experiment(name)


def log(run: Run, generation: int, rows: int, say: Say) -> None:
    for _ in range(rows):
        step = run.rows
        metrics = {"loss": value_of(generation, step)}
        if step % 50 == 7:  # a line of more than one page
            metrics["long " * 2000] = 1.0
        run.log(metrics, step=step)
        say(f"row {step}")
        if step % 4 == 0:
            time.sleep(0.002)  # or the reader is busy with rows instead of files


def finish(order: dict[str, object], say: Say) -> None:
    """Run after run, each with some rows: Parquet files, the catalogue, a pack now and then."""
    generation = int(str(order["generation"]))
    rng = random.Random(generation)
    for number in range(10**9):
        run = begin(f"{order['name']}.{number}", say)
        log(run, generation, rng.randrange(1, 60), say)
        say("finishes")
        run.finish()
        say("finished")


def catalogue(order: dict[str, object], say: Say) -> None:
    """Everything has changed, again and again."""
    for number in range(10**9):
        say("updates")
        for path in [*get_experiments_dir().glob("*.*"), *store.packs_dir().glob("*.*")]:
            os.utime(path)
        if number % 3 == 2:
            (get_experiments_dir() / ".catalogue.sqlite").unlink(missing_ok=True)
        Catalogue()


def pack(order: dict[str, object], say: Say) -> None:
    """Everything into packs, some of it back."""
    rng = random.Random(int(str(order["generation"])))
    while True:
        say("packs")
        packing.pack_experiments()
        packed = sorted(Catalogue().packed())
        for name in rng.sample(packed, min(3, len(packed))):
            say("unpacks")
            unpack_experiment(name)


# --- many at once ----------------------------------------------------------------------------------


def crowd(writers: int, seconds: float) -> None:
    """`writers` processes that log and finish runs and one that packs; each says what it stored."""
    until = time.monotonic() + seconds
    children = [fork(lambda i=i: write(i, until)) for i in range(writers)]  # type: ignore[misc]
    children.append(fork(lambda: move(until)))
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    sys.exit(1 if failed else 0)


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return child


def write(number: int, until: float) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        run = start_experiment(prefix=f"w{number % 8}", seed=number)  # eight want the same names
        rows = rng.randrange(1, 120)
        for step in range(rows):
            metrics = {"loss": value_of(number, step)}
            if rng.random() < 0.1:
                metrics[f"metric_{rng.randrange(40)}"] = 1.0  # which no row had before, at times
            run.log(metrics, step=step)
            time.sleep(rng.uniform(0.0, 0.03))
        status = "finished" if rng.random() < 0.7 else "interrupted"
        run.finish(status)
        line = json.dumps([run.name, status, rows, number])
        os.write(sys.stdout.fileno(), f"{line}\n".encode())  # whole, among those of the others


def move(until: float) -> None:
    rng = random.Random(0)
    while time.monotonic() < until:
        packing.pack_cold_experiments()
        packed = sorted(Catalogue().packed())
        for name in rng.sample(packed, min(2, len(packed))):
            unpack_experiment(name)


if __name__ == "__main__":
    # Here, once: whoever is forked is at work at once.
    environment_fingerprint()
    parquet.rows_to_table("warm", [], ["loss"])
    if sys.argv[1] == "crowd":
        crowd(int(sys.argv[2]), float(sys.argv[3]))
    for line in sys.stdin:
        print(json.dumps(kill_one(json.loads(line))), flush=True)
