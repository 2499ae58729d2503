"""Python commands without the seconds that their imports take: a server imports the libraries once and forks.

`ForkServer().run("tools/query_experiments.py", "--list")` is `subprocess.run([sys.executable, ...])` in a child of the
server: its own arguments, environment, folder, standard streams and signals at their defaults, and it can be killed. The
server only imports: a process that has computed with several threads hangs once it is forked.

What differs from a real process: modules are imported already. So variables that are read at an import (`READ_AT_IMPORT`)
start a real one, and each tool has a test of its own that does.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
READ_AT_IMPORT = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "TORCH_", "HF_", "MPL")
PRELOADED = (
    "yaml",
    "pandas",
    "duckdb",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "matplotlib.pyplot",
    "scipy.stats",
    "torch._dynamo",
    "transformers",
    "common.cli",
    "common.models.decoder",
    "common.models.hub.load",
    "common.training.experiment",
    "common.training.callbacks.early_stopping",
    "common.visualization",
)


# --- the server ------------------------------------------------------------------------------------


def serve(orders: socket.socket) -> None:
    """Fork a child per order; answer with its pid, then with its exit code, 4 bytes each."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or a collection in each child would copy every page
    bell, rope = os.pipe()
    os.set_blocking(rope, False)
    signal.set_wakeup_fd(rope)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: pytest ends its server
    clients: dict[int, socket.socket] = {}
    while True:
        ready = select.select([orders, bell], [], [])[0]
        if bell in ready:
            os.read(bell, 4096)
            for pid in list(clients):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    tell(clients.pop(pid), os.waitstatus_to_exitcode(status))
        if orders in ready:
            message, fds, _, _ = socket.recv_fds(orders, 1, 4)
            if not message:
                os._exit(0)
            client, streams = socket.socket(fileno=fds[0]), fds[1:]
            pid = os.fork()
            if pid == 0:
                orders.close()
                become(client, streams)
            clients[pid] = client
            client.sendall(pid.to_bytes(4, "little"))
            for stream in streams:
                os.close(stream)


def tell(client: socket.socket, number: int) -> None:
    with client, contextlib.suppress(BrokenPipeError):  # nobody may wait for it
        client.sendall(number.to_bytes(4, "little", signed=True))


def become(client: socket.socket, streams: list[int]) -> None:
    """Be the command that the client orders, from here to its exit."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    code = 1
    try:
        with client, client.makefile() as lines:
            order = json.loads(lines.readline())
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        if {"PYTHONPATH", "RESEARCH_LOG", "WORLD_SIZE"} & order["env"].keys():
            import_again()
        for strike in order["strikes"]:
            strike_at(**strike)
        run_as_python(*order["arguments"])
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        code = -signal.SIGINT if interrupted else 1
    leave(code)


def import_again() -> None:
    """Forget this repository: PYTHONPATH may name another copy, and a logger looks once where to write."""
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    ours = {"common", "apps", "projects", "papers", "tools"}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    logging.getLogger("research").handlers.clear()


def run_as_python(first: str, *arguments: str) -> None:
    """`python first *arguments`: a script, `-m module` or `-c code`."""
    if first == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], str(Path.cwd())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *arguments], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def leave(code: int) -> None:
    """What the interpreter does at its end, less the seconds in which it frees every object."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


# --- strikes: a command that sends itself a signal at a chosen moment ------------------------------------


def strike_at(
    count: int, signal: int, call: str | None = None, after: bool = False, **change: Any
) -> None:
    """At the `count`-th call of `package.module:Class.method`, or at a change of a file, see `at_change`."""
    left, lock = count, threading.Lock()  # checkpoints may be written by another thread

    def happened() -> None:
        nonlocal left
        with lock:
            left -= 1
            strike = left == 0
        if strike:
            os.kill(os.getpid(), signal)

    if call is None:
        sys.addaudithook(at_change(happened, **change))
        return
    module, _, path = call.partition(":")
    *outer, name = path.split(".")
    owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        if not after:
            happened()
        result = original(*arguments, **options)
        if after:
            happened()
        return result

    setattr(owner, name, counted)


def at_change(happened: Any, change: str, reads: bool = True) -> Any:
    """An audit hook: a file whose path contains `change` is about to be opened, made, renamed or removed.

    `reads=False` counts no opening for reading, and so no fsync of a folder.
    """
    changes = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            mode = arguments[1]
            counts = not sys.is_finalizing() if reads else isinstance(mode, str) and mode[0] in "wa"
        else:
            counts = event in changes
        if counts and any(change in str(a) for a in arguments[:2]):
            happened()

    return hook


# --- the client ------------------------------------------------------------------------------------


@dataclass
class Process:
    """A command of the server; of `subprocess.Popen` what tests need."""

    arguments: list[str]
    pid: int
    answers: socket.socket
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
            self.returncode = hear(self.answers)
            self.answers.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def hear(answers: socket.socket) -> int:
    answer = answers.recv(4, socket.MSG_WAITALL)
    if not answer:
        raise RuntimeError("the fork server is gone")
    return int.from_bytes(answer, "little", signed=True)


@dataclass
class ForkServer:
    """The server of one pytest process; it starts with the first command."""

    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    processes: list[Process] = field(default_factory=list)
    server: subprocess.Popen[bytes] | None = None
    orders: socket.socket | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        for process in self.processes:
            process.kill()
        if self.server and self.orders:
            self.orders.close()
            self.server.wait()

    def connect(self) -> socket.socket:
        if self.orders is None:
            self.orders, theirs = socket.socketpair()
            with theirs:
                self.server = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    cwd=REPOSITORY_ROOT,
                    env=self.environment,
                    pass_fds=[theirs.fileno()],
                )
        return self.orders

    def start(
        self,
        *arguments: object,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        strikes: Iterable[dict[str, Any]] = (),
    ) -> Process:
        """`python *arguments` with these files as its standard streams. `env` is the whole environment."""
        order = {
            "arguments": [os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": {**(os.environ if env is None else env)},
            "strikes": list(strikes),
        }
        mine, theirs = socket.socketpair()
        with theirs:
            fds = [theirs.fileno(), *(stream.fileno() for stream in (stdin, stdout, stderr))]
            socket.send_fds(self.connect(), [b"."], fds)
        mine.sendall(json.dumps(order).encode() + b"\n")
        self.processes = [process for process in self.processes if process.returncode is None]
        self.processes.append(Process(order["arguments"], hear(mine), mine))
        return self.processes[-1]

    def run(
        self,
        *arguments: object,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """`subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
        environment = {**(os.environ if env is None else env)}
        if read_at_import(environment) != read_at_import(self.environment):
            command = [sys.executable, *map(str, arguments)]
            options: Any = {"cwd": cwd, "env": environment, "timeout": timeout}
            options |= {
                "input": input.decode(errors="surrogateescape"),
                "errors": "surrogateescape",
            }
            return subprocess.run(command, capture_output=True, text=True, **options)
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            stdin.write(input)
            stdin.seek(0)
            process = self.start(
                *arguments, cwd=cwd, env=environment, stdin=stdin, stdout=out, stderr=err
            )
            try:
                process.wait(timeout)
            except BaseException:
                process.kill()
                raise
            out.seek(0)
            err.seek(0)
            code = process.wait()
            return subprocess.CompletedProcess(process.arguments, code, out.read(), err.read())


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    names = {key for key in environment if key.startswith(READ_AT_IMPORT)} - {"PYTHONPATH"}
    return {name: environment[name] for name in names}


if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY_ROOT)
    serve(socket.socket(fileno=int(sys.argv[1])))
