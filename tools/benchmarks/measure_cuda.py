"""GPT-2 124M on a CUDA device: tokens per second beside compiled nanoGPT, and MFU."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median

import torch

from tools.benchmarks.measure_tokens import OURS, preparation_rows
from tools.benchmarks.networks import NETWORKS
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import Measured, Ratio, Row, at_least, compared
from tools.benchmarks.results import say
from tools.benchmarks.turns import take_turns

NETWORK = "124M"
TARGET = at_least(1.25)
_NANOGPT = "nanoGPT compiled bf16"
# Dense bf16 FLOP/s from NVIDIA's data sheets; the first matching name counts.
_PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def measure_cuda(plan: Plan) -> Measured:
    """Skips with a message if there is no CUDA device."""
    if not torch.cuda.is_available():
        say("cuda: skipped, there is no CUDA device")
        return Measured()
    device = torch.cuda.get_device_name()
    options = {"device": "cuda", "precision": "bf16"}
    contestants = {OURS: plan.ours(NETWORK, compile="auto", **options)}
    if plan.nanogpt is not None:
        contestants[_NANOGPT] = plan.of_nanogpt(NETWORK, compile="on", **options)
    records, failures = take_turns(contestants, plan.rounds, plan.seconds, f"cuda, {device}")
    network = NETWORKS[NETWORK]
    speeds = {
        name: [network.tokens_per_step / turn for turn in record.turns]
        for name, record in records.items()
    }
    rows = _rows(device, speeds, peak_flops(device)) + preparation_rows(NETWORK, records)
    raw = {name: asdict(record) for name, record in records.items()}
    return Measured(rows, {"device": device, "records": raw, "failures": failures})


def _rows(device: str, speeds: dict[str, list[float]], peak: float | None) -> list[Row]:
    ours, theirs = speeds[OURS], speeds.get(_NANOGPT)
    work = f"GPT-2 {NETWORK}, bf16, {device}"
    if theirs is None:
        rows = [Row(f"{work}: training", "tokens/s", median(ours))]
    else:
        rows = [compared(f"{work}: training", "tokens/s", ours, _NANOGPT, theirs, TARGET)]
    if peak is None:
        say(f"cuda: no MFU, the peak of a {device} is not known")
        return rows
    percent = 100 * NETWORKS[NETWORK].flops_per_token / peak
    mfu = Row(f"{work}: MFU", "%", percent * median(ours))
    if theirs is not None:
        found = percent * median(theirs)
        mfu = mfu._replace(peer=_NANOGPT, theirs=found, ratio=Ratio(percent * median(ours) / found))
    return [*rows, mfu]


def peak_flops(device: str) -> float | None:
    """Dense bf16 FLOP/s of a device by name; None if unknown."""
    return next((peak for name, peak in _PEAKS.items() if name in device), None)
