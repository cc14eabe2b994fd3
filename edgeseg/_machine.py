"""Which machine this is, as far as speed depends on it: the processor's name, from the system's files."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor(root: Path = Path("/")) -> str:
    """The processor's name in one line, on boards without one the board's; `root` is where /proc is. Never an error."""
    told = re.search(r"^model name\s*: (.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    name = told[1] if told else _text(root / "proc/device-tree/model").rstrip("\0")
    return " ".join((name or platform.processor() or platform.machine()).split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
