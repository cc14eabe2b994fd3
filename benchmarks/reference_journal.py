"""The folder of a training run: what was asked for, its log, and the last checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from edgeseg._files import write_atomic
from edgeseg.benchmarks.reference_training import Run
from edgeseg.errors import InputError

RUN, LOG = "run.json", "log.jsonl"


class Journal:
    """Raises InputError where the folder cannot be had, is damaged, or holds a run with other settings."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self._folder, self._checkpoint, self._log = folder, folder / "checkpoint.pt", folder / LOG
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".*.tmp"):  # of a write that was killed
                left_over.unlink()
        except OSError as error:
            raise InputError(f"cannot use {folder} as a run's folder: {error.strerror}") from error
        asked = json.loads(json.dumps(settings))
        if (folder / RUN).is_file():
            self._compare(asked)
        write_atomic(folder / RUN, json.dumps(asked, indent=2).encode())

    def _compare(self, asked: Mapping[str, object]) -> None:
        try:
            held = json.loads((self._folder / RUN).read_text())
            different = [name for name in {**asked, **held} if asked.get(name) != held.get(name)]
        except (ValueError, TypeError) as error:
            raise InputError(f"{self._folder / RUN} is damaged: choose another folder for -o") from error
        if different:
            name = different[0]
            told = f"{name} is {asked.get(name)!r} and was {held.get(name)!r}"
            raise InputError(f"{self._folder} holds another run ({told}): choose another folder for -o")

    def resume(self, run: Run) -> None:
        """Bring `run` to the last checkpoint, and the log back to it; nothing where there is none."""
        if not self._checkpoint.is_file():
            write_atomic(self._log, b"")
            return
        try:
            # AdamW counts its steps on the CPU, wherever the weights are.
            run.restore(torch.load(self._checkpoint, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises a dozen types, with advice that must not be followed
            raise InputError(f"{self._checkpoint} is damaged: delete it to begin again") from error
        kept = []
        for line in self._log.read_bytes().splitlines() if self._log.is_file() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
                if json.loads(line)["step"] <= run.step:
                    kept.append(line + b"\n")
        write_atomic(self._log, b"".join(kept))

    def note(self, entry: Mapping[str, object]) -> None:
        """One line of the log."""
        with self._log.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def save(self, run: Run) -> None:
        """Replace the checkpoint."""
        buffer = io.BytesIO()
        torch.save(run.state(), buffer)
        write_atomic(self._checkpoint, buffer.getvalue())
