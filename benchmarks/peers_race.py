"""Contenders in processes of their own that take strict turns frame by frame, and what a contender is."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeseg.errors import BackendError, InputError, one_line
from edgeseg.types import ClassMap

WARMUP = 10
START_S, TURN_S = 300.0, 60.0
"""How long a worker may take to start or for its first turn, which may compile, and for another."""
PAUSE_S = 0.005
"""Between turns: threads that still spin after a run are asleep by then, whoever's they are."""
_IMPORT_S = 60.0
_SCRIPT = Path(__file__).with_name("peers_worker.py")
_ENVIRONMENT = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # otherwise processes stay behind


@dataclass(frozen=True, slots=True)
class Spec:
    """One contender: what its time `includes`, whom it is measured `against`, its worker's `settings`.

    `python` None is this interpreter. `needs` says how to get what it needs, where its worker fails.
    """

    name: str
    includes: str
    against: str
    settings: Mapping[str, Any]
    python: Path | None = None
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """Nanoseconds by round, of the whole and of (preprocess, network, decode) where it says so.

    `masks` are those of all frames, None where it makes none. `quantized`: convolutions executed in int8, if known.
    """

    runtime: str
    quantized: int | None
    ns: tuple[int, ...]
    stages: tuple[tuple[int, int, int], ...]
    masks: tuple[ClassMap, ...] | None


def check_python(python: Path) -> None:
    """Before minutes of measuring: raises InputError for a `python` that does not start or has no Model API."""
    command = [str(python), "-I", "-c", "import openvino, model_api.models"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_S, check=False)
    except OSError as error:
        raise InputError(f"--peers: cannot start {python}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--peers: {python} does not import Model API within {_IMPORT_S:g} s") from error
    if done.returncode:
        told = one_line((done.stderr.strip().splitlines() or ["it says nothing"])[-1])
        raise InputError(f"--peers: {python} has no Model API ({told}): pip install openvino-model-api there")


class Worker:
    """A contender's process, ready when this returns. Raises BackendError in one line where it is not."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self._name, self._needs = spec.name, spec.needs
        self._stderr = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the worker)
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(spec.settings, file)
        own = [sys.executable, "-m", "edgeseg.benchmarks.peers_worker"]
        command = own if spec.python is None else [str(spec.python), "-I", str(_SCRIPT)]
        try:
            self._process = subprocess.Popen(
                [*command, file.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env=os.environ | _ENVIRONMENT,
            )
        except OSError as error:
            self._stderr.close()
            raise BackendError(f"{spec.name}: cannot start {command[0]}: {error.strerror}") from error
        try:
            self.about = self._answer(START_S)
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, seconds: float) -> dict[str, Any]:
        """Have it done and wait for the answer; raises BackendError where the process fails or takes longer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why, `_answer` says
            print(command, file=self._process.stdin, flush=True)
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        begin, limit = time.monotonic(), threading.Timer(seconds, self._process.kill)
        limit.daemon = True
        limit.start()
        try:
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            self._process.wait()
            if time.monotonic() - begin >= seconds:
                raise BackendError(f"{self._name} does not answer within {seconds:g} s")
            self._stderr.seek(0)
            told = self._stderr.read().decode(errors="replace").strip().splitlines()
            needs = f" ({self._needs})" if self._needs else ""
            raise BackendError(f"{self._name} fails: {one_line(told[-1] if told else 'no message')}{needs}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise BackendError(f"{self._name} answers {one_line(line)[:80]!r}, which is no answer") from error
        return answer

    def close(self) -> None:
        """End the process; it may not be asked again."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a command that nobody took
                if pipe is not None:
                    pipe.close()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def race(specs: Sequence[Spec], rounds: int, tell: Callable[[str], None]) -> tuple[dict[str, Ran], dict[str, str]]:
    """Run every contender once a round, in an order drawn anew each round; the frames one after the other.

    What ran by name, and why the others did not: who fails or hangs on the way is left out from there. The first
    contender must run: raises its BackendError otherwise.
    """
    missing: dict[str, str] = {}

    def left_out(name: str, error: BackendError) -> None:
        if name == specs[0].name:
            raise error
        missing[name] = str(error).removeprefix(name).lstrip(": ")  # it stands beside the name

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers: dict[str, Worker] = {}
        for spec in specs:
            tell(f"starting {spec.name}")
            try:
                worker = stack.enter_context(Worker(spec, folder))
                worker.ask("turn 0", START_S)  # what fails, fails here and not in the middle of the race
            except BackendError as error:
                left_out(spec.name, error)
            else:
                workers[spec.name] = worker
        taken = _turns(workers, rounds, tell, left_out)
        found = {}
        for name in taken:
            worker, path = workers[name], folder / "masks.npy"
            try:
                made = worker.ask(f"masks {path}", START_S)["masks"]
            except BackendError as error:
                left_out(name, error)
                continue
            found[name] = Ran(
                runtime=worker.about["runtime"],
                quantized=worker.about["quantized"],
                ns=tuple(turn["ns"] for turn in taken[name]),
                stages=tuple(tuple(turn["stages"]) for turn in taken[name] if turn["stages"]),
                masks=tuple(np.load(path)) if made else None,
            )
    return found, missing


def _turns(
    workers: Mapping[str, Worker],
    rounds: int,
    tell: Callable[[str], None],
    left_out: Callable[[str, BackendError], None],
) -> dict[str, list[dict[str, Any]]]:
    """The answers by name, of those who gave all of them."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    rng, order = random.Random(0), list(workers)
    for turn in range(-WARMUP, rounds):
        tell(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up")
        rng.shuffle(order)
        for name in tuple(order):
            time.sleep(PAUSE_S)
            try:
                answer = workers[name].ask(f"turn {turn % workers[name].about['frames']}", TURN_S)
            except BackendError as error:
                left_out(name, error)
                order.remove(name)
                del taken[name]
                continue
            if turn >= 0:
                taken[name].append(answer)
    return taken
