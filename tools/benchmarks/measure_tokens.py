"""Training speed in tokens per second: the same network, tokens and optimizer in every contestant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median

from tools.benchmarks.agreement import measure_agreement
from tools.benchmarks.networks import NETWORKS
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import Measured, Row, Target, at_least, compared
from tools.benchmarks.turns import Contestant, Record, take_turns

OURS = "ours"
NANOGPT_DEFAULT = "nanoGPT compiled fp32"  # train.py --device=cpu
NANOGPT_README = "nanoGPT eager fp32"  # with --compile=False, as its README has it for CPUs
TARGET = at_least(1.2)
TARGET_DEFAULT = at_least(2.0)  # nanoGPT's default, for the two larger networks
TARGET_HUGGINGFACE = at_least(1.5)


def measure_tokens(plan: Plan) -> Measured:
    measured = Measured()
    for network in plan.networks:
        if plan.nanogpt is not None:
            agreement = measure_agreement(plan, network)
            measured.rows += agreement.rows
            measured.raw[f"{network} agreement"] = agreement.raw
        records, failures = take_turns(
            _contestants(plan, network), plan.rounds, plan.seconds, f"tokens, {network}"
        )
        tokens = NETWORKS[network].tokens_per_step
        measured.rows += _rows(network, _speeds(records, tokens), records)
        measured.raw[network] = {
            "records": {name: asdict(record) for name, record in records.items()},
            "failures": failures,
        }
    return measured


def _contestants(plan: Plan, network: str) -> dict[str, Contestant]:
    contestants = {OURS: plan.ours(network, precision="auto", compile="auto")}
    for compiled, mode in (("off", "eager"), ("on", "compiled")):
        for precision in ("fp32", "bf16"):
            options = {"precision": precision, "compile": compiled}
            name = f"{mode} {precision}"
            if plan.nanogpt is not None:
                contestants[f"nanoGPT {name}"] = plan.of_nanogpt(network, **options)
            if plan.accelerate is not None and mode == "eager":  # a compiling one takes minutes
                contestants[f"HF Trainer {name}"] = plan.of_huggingface(network, **options)
    if plan.accelerate is not None:
        unfused = plan.of_huggingface(network, optim="adamw_torch")
        contestants["HF Trainer eager fp32, adamw_torch"] = unfused
    return contestants


def _speeds(records: Mapping[str, Record], tokens: int) -> dict[str, list[float]]:
    """Tokens per second for every turn."""
    return {name: [tokens / turn for turn in record.turns] for name, record in records.items()}


def _rows(
    network: str, speeds: Mapping[str, list[float]], records: Mapping[str, Record]
) -> list[Row]:
    """Rows with ours beside the best of each peer and beside nanoGPT's default, then every contestant."""
    ours = speeds[OURS]

    def row(what: str, name: str, target: Target | None = None) -> Row:
        work = f"{network}: training{what}"
        return compared(work, "tokens/s", ours, name, speeds[name], target)

    rows = [Row(f"{network}: training", "tokens/s", median(ours))]
    if best := best_of("nanoGPT", records):
        rows.append(row(", nanoGPT at its best", best, TARGET))
    if NANOGPT_DEFAULT in records:
        rows.append(
            row(
                ", nanoGPT by default",
                NANOGPT_DEFAULT,
                None if network == "0.8M" else TARGET_DEFAULT,
            )
        )
    if NANOGPT_README in records:
        rows.append(
            row(
                ", nanoGPT as in its README for CPUs",
                NANOGPT_README,
                None if network == "0.8M" else TARGET_DEFAULT,
            )
        )
    if best := best_of("HF Trainer", records):
        rows.append(row(", HF Trainer at its best", best, TARGET_HUGGINGFACE))
    shown = {row.peer for row in rows}
    rows += [row("", name) for name in speeds if name != OURS and name not in shown]
    return rows + preparation_rows(network, records)


def preparation_rows(network: str, records: Mapping[str, Record]) -> list[Row]:
    """Seconds before the steady state, for ours and the fastest peers."""
    ours = records[OURS].preparation_seconds
    rows = []
    for peer in ("nanoGPT", "HF Trainer"):
        if best := best_of(peer, records):
            theirs = records[best].preparation_seconds
            rows.append(
                Row(f"{network}: building and compiling before that", "s", ours, best, theirs)
            )
    return rows or [Row(f"{network}: building and compiling before that", "s", ours)]


def best_of(peer: str, records: Mapping[str, Record]) -> str | None:
    """The fastest contestant of `peer`."""
    found = {name: r.step_seconds for name, r in records.items() if name.startswith(peer)}
    return min(found, key=found.__getitem__) if found else None
