"""One turn of one contestant of load_weights.py: `load_turns CONTESTANT FOLDER WARM_UP`; the last line is JSON."""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

_PAGE = 4096


def read_into_one_buffer(folder: Path) -> Iterable[torch.Tensor]:
    """Plain reading of the files into fresh memory of their size."""
    paths = sorted(folder.glob("*.safetensors"))
    buffer = torch.empty(sum(path.stat().st_size for path in paths), dtype=torch.uint8)
    memory = buffer.numpy().data
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(memory):
                memory = memory[count:]
    return [buffer]


def read_through_a_mebibyte(folder: Path) -> Iterable[torch.Tensor]:
    """Plain reading of which nothing is kept."""
    memory = memoryview(bytearray(2**20))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(memory):
                pass
    return []


def ours(folder: Path) -> Iterable[torch.Tensor]:
    from common.models import load_pretrained

    return load_pretrained(folder, dtype="auto").parameters()


def ours_float32(folder: Path) -> Iterable[torch.Tensor]:
    from common.models import load_pretrained

    return load_pretrained(folder).parameters()


def transformers(folder: Path) -> Iterable[torch.Tensor]:
    return _transformers(folder, "auto")


def transformers_float32(folder: Path) -> Iterable[torch.Tensor]:
    return _transformers(folder, "float32")


def _transformers(folder: Path, dtype: str) -> Iterable[torch.Tensor]:
    import transformers as package

    logging: Any = package.logging
    logging.disable_progress_bar()
    model: Any = package.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    )
    parameters: Iterable[torch.Tensor] = model.parameters()
    return parameters


def load_file(folder: Path) -> Iterable[torch.Tensor]:
    """A dictionary of tensors, which are the mapped file."""
    from safetensors.torch import load_file

    paths = sorted(folder.glob("*.safetensors"))
    return [tensor for path in paths for tensor in load_file(path).values()]


def load_file_pread(folder: Path) -> Iterable[torch.Tensor]:
    """A dictionary of tensors with memory of their own."""
    from safetensors.torch import load_file

    paths = sorted(folder.glob("*.safetensors"))
    return [tensor for path in paths for tensor in load_file(path, backend="pread").values()]


CONTESTANTS: dict[str, Callable[[Path], Iterable[torch.Tensor]]] = {
    function.__name__: function
    for function in (
        *(read_into_one_buffer, read_through_a_mebibyte, ours, ours_float32),
        *(transformers, transformers_float32, load_file, load_file_pread),
    )
}


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Read a byte of each page, which maps those of a mapped file; returns the bytes of all tensors."""
    size = 0
    for tensor in tensors:
        if tensor.numel():
            tensor.detach().view(-1).view(torch.uint8)[::_PAGE].sum()
        size += tensor.nbytes
    return size


def touch_free_memory(size: int) -> None:
    """Make the memory that is allocated next that of this machine.

    A virtual machine's host may have taken it back: its first page faults then take five times as long.
    """
    size = min(size, psutil.virtual_memory().available // 2)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, max(size, _PAGE), flags=flags).close()


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, or its peak VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main(name: str, folder: str, warm_up: str) -> None:
    load = CONTESTANTS[name]
    touch(load(Path(warm_up)))  # imports, threads that start
    touch_free_memory(2 * sum(path.stat().st_size for path in Path(folder).iterdir()))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    started, used = time.perf_counter(), time.process_time()
    tensors = list(load(Path(folder)))
    size = touch(tensors)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - used,
                "peak_bytes": memory("VmHWM") - before,
                "tensor_bytes": size,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
