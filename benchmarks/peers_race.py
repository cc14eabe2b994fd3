"""Contenders in processes of their own that take strict turns frame by frame, and what a contender is."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgeseg.errors import BackendError
from edgeseg.surgery.facts import one_line
from edgeseg.types import ClassMap

WARMUP = 10
PAUSE_S = 0.005
"""Between turns: threads that still spin after a run are asleep by then, whoever's they are."""
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
            self.about = self._answer()
        except BackendError:
            self.close()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        """Have it done and wait for the answer; raises BackendError where the process fails."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why, `_answer` says
            print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            told = self._stderr.read().decode(errors="replace").strip().splitlines()
            needs = f" ({self._needs})" if self._needs else ""
            raise BackendError(f"{self._name} fails: {one_line(told[-1] if told else 'no message')}{needs}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process; it may not be asked again."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def race(specs: Sequence[Spec], rounds: int, tell: Callable[[str], None]) -> tuple[dict[str, Ran], dict[str, str]]:
    """Run every contender once a round, in an order drawn anew each round; the frames one after the other.

    What ran by name, and why the others did not. The first contender must run: raises its BackendError otherwise.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers: dict[str, Worker] = {}
        missing: dict[str, str] = {}
        for number, spec in enumerate(specs):
            tell(f"starting {spec.name}")
            try:
                worker = stack.enter_context(Worker(spec, folder))
                worker.ask("turn 0")  # what fails, fails here and not in the middle of the race
            except BackendError as error:
                if not number:
                    raise
                missing[spec.name] = str(error)
            else:
                workers[spec.name] = worker
        taken = _turns(workers, rounds, tell)
        found = {}
        for name, worker in workers.items():
            path = folder / "masks.npy"
            made = worker.ask(f"masks {path}")["masks"]
            found[name] = Ran(
                runtime=worker.about["runtime"],
                quantized=worker.about["quantized"],
                ns=tuple(turn["ns"] for turn in taken[name]),
                stages=tuple(tuple(turn["stages"]) for turn in taken[name] if turn["stages"]),
                masks=tuple(np.load(path)) if made else None,
            )
    return found, missing


def _turns(workers: Mapping[str, Worker], rounds: int, tell: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    rng, order = random.Random(0), list(workers)
    for turn in range(-WARMUP, rounds):
        tell(f"round {turn + 1} of {rounds}" if turn >= 0 else "warming up")
        rng.shuffle(order)
        for name in order:
            time.sleep(PAUSE_S)
            answer = workers[name].ask(f"turn {turn % workers[name].about['frames']}")
            if turn >= 0:
                taken[name].append(answer)
    return taken
