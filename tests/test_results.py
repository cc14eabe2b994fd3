"""Reading a run's file: what is none says so in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgeseg.benchmarks.results import Frames, Host, Noise, Results, read, save
from edgeseg.errors import InputError

RUN = Results(
    "street", "b" * 64, (64, 96), {}, Frames(60, 80, "drawn", "f"), Host({}), Noise(0.01, False), "", "", "", ()
)


def cut(text: str) -> str:
    return text[: text.index('"began"') + 12]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", r"is empty: "),
        ("\n \n", r"is empty: "),
        (cut, r"is cut short or damaged \(line \d\d+\): "),
        ("{}", r"is no run of `edgeseg bench --json`: "),
        ('{"format": 1, "name": "camvid", "output_strides": []}', r"is no run of `edgeseg bench --json`: "),
        ("[]", r"is no run of `edgeseg bench --json`: "),
        ("<!doctype html>", r"is no run of `edgeseg bench --json`: "),
        (lambda text: text.replace('"claim": 0.01', '"claim": "x"'),
         r"is damaged \(results\.noise\.claim is 'x': must be a number\): "),
    ],
)  # fmt: skip
def test_a_file_that_is_no_run_says_what_it_is(tmp_path: Path, content: str | Callable[[str], str], named: str) -> None:
    path = tmp_path / "a.json"
    save(RUN, path)
    path.write_text(content if isinstance(content, str) else content(path.read_text(encoding="utf-8")))
    with pytest.raises(InputError) as caught:
        read(path)
    remedy = "give a file that `edgeseg bench --json FILE` wrote"
    assert re.fullmatch(f"{re.escape(str(path))} {named}{remedy}", str(caught.value))


def test_a_newer_format_says_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save(replace(RUN, format=2), path)
    with pytest.raises(InputError, match=r"is of format 2, this edgeseg reads 1: run `edgeseg bench --json` again$"):
        read(path)
