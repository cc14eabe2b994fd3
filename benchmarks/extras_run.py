"""What a run measures on request after its grid: cost as the work grows, and others on the same graph and frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

from edgeseg.benchmarks.extras import Comparison, Growth
from edgeseg.benchmarks.grid import grid
from edgeseg.benchmarks.peers_race import check_python
from edgeseg.benchmarks.results import Results
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset
from edgeseg.errors import BackendMissing, InputError
from edgeseg.types import Precision

_USUAL_STRIDE = 16
_FULL_S = 60.0
_GROWTH_ROUNDS, _PEERS_ROUNDS, _BLOCKS = 30, 100, 12
_FEWEST = 3

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure after a grid, of which output stride. `peers` is the Python that has them, None: not asked for.

    `weights` is the bundle's checkpoint, with which torch joins.
    """

    output_stride: int
    growth: bool
    peers: Path | None
    precisions: tuple[Literal["int8", "fp32"], ...]
    weights: Path | None
    threads: int


def planned(
    bundle: Bundle,
    output_strides: Sequence[int] | None,
    backends: Sequence[str] | None,
    precisions: Sequence[Precision] | None,
    threads: int,
    *,
    growth: bool = False,
    peers: Path | None = None,
    weights: Path | None = None,
) -> Plan:
    """See, before a grid of these takes its minutes, that what is asked for can be measured after it.

    The output stride is 16, or else the middle one of the grid's; peers are compared in int8 and fp32, where the
    bundle has them and `precisions` names them. Raises BackendMissing for a package that is not here, InputError for
    `weights` that are not there and a `peers` that does not start or has no Model API, and as `grid` does.
    """
    strides = sorted({one.output_stride for one in grid(bundle, output_strides, backends, precisions, threads)})
    stride = _USUAL_STRIDE if _USUAL_STRIDE in strides else strides[len(strides) // 2]
    here = {(v.precision, v.encoding) for v in bundle.manifest.variants if v.output_stride == stride}
    pairs: tuple[tuple[Literal["int8", "fp32"], str], ...] = (("int8", "cpu"), ("fp32", "float"))
    compared = tuple(one for one, how in pairs if (one, how) in here and one in (precisions or (one,)))
    if growth:
        _need("--growth", {"onnx": "onnx", "onnxruntime": "ort"})
    if peers is not None:
        _need("--peers", {"onnx": "onnx", "openvino": "openvino"})
        if not compared:
            told = f"{bundle.path} at output stride {stride} has neither of those asked for"
            raise InputError(f"--peers compares in int8 and fp32: {told}")
        if weights is not None:
            _need("--weights", {"torch": "export"})
            if not weights.is_file():
                raise InputError(f"--weights: there is no file {weights}")
        check_python(peers)
    return Plan(stride, growth, peers, compared, weights, threads)


def extended(
    results: Results,
    plan: Plan,
    bundle: Bundle,
    *,
    images: Dataset | None = None,
    seconds: float = _FULL_S,
    tell: Tell = lambda step: None,
) -> Iterator[Results]:
    """The results with all of what the plan asks for that there is so far, on the same pictures as the grid.

    Less than 60 `seconds` shorten it. Growth is measured on the grid's first backend, in int8 where that ran. Raises
    BackendError, BundleError or InputError.
    """
    share = min(1.0, seconds / _FULL_S)
    if plan.growth:
        results = replace(results, growth=_growth(results, plan, bundle, images, share, tell))
        yield results
    for comparison in _peers(results, plan, bundle, images, share, tell):
        results = replace(results, peers=(*results.peers, comparison))
        yield results


def _growth(results: Results, plan: Plan, bundle: Bundle, images: Dataset | None, share: float, tell: Tell) -> Growth:
    from edgeseg.benchmarks.growth import grow  # needs onnx

    ran = [one.configuration for one in results.measurements if one.latency is not None]
    ran = [one for one in ran if one.output_stride == plan.output_stride] or ran
    chosen = min((one for one in ran if one.backend == ran[0].backend), key=lambda one: one.precision != "int8")
    return grow(
        path=bundle.path,
        output_stride=chosen.output_stride,
        precision=cast(Precision, chosen.precision),
        backend=chosen.backend,
        images=images,
        rounds=max(_FEWEST, round(share * _GROWTH_ROUNDS)),
        tell=lambda step: tell(f"growth: {step}"),
    )


def _peers(
    results: Results, plan: Plan, bundle: Bundle, images: Dataset | None, share: float, tell: Tell
) -> Iterator[Comparison]:
    if plan.peers is None:
        return
    from edgeseg.benchmarks.peers import compare  # needs onnx

    for precision in plan.precisions:

        def say(step: str, precision: str = precision) -> None:
            tell(f"peers in {precision}: {step}")

        yield compare(
            path=bundle.path,
            output_stride=plan.output_stride,
            precision=precision,
            frame=(results.frames.height, results.frames.width),
            images=images,
            peers=plan.peers,
            weights=plan.weights,
            threads=plan.threads,
            rounds=max(_FEWEST, round(share * _PEERS_ROUNDS)),
            blocks=max(_FEWEST, round(share * _BLOCKS)),
            tell=say,
        )


def tables(results: Results) -> Iterator[str]:
    """What `extended` measured, in lines for a terminal."""
    if results.growth is not None:
        from edgeseg.benchmarks import growth

        yield growth.table(results.growth)
    if results.peers:
        from edgeseg.benchmarks import peers

        yield from map(peers.table, results.peers)


def _need(option: str, packages: Mapping[str, str]) -> None:
    """Packages by the extra that brings them."""
    for package, extra in packages.items():
        if find_spec(package) is None:
            raise BackendMissing(f'{option} needs the package {package}: pip install "edgeseg[{extra}]"')
