"""Everything a change must pass, one virtual environment per session: `nox`.

check       Python 3.11: lint, types, import rules, every test
torch_free  Python 3.10: every test that needs no torch; 3.12 (JetPack 7's) and 3.13: those of what runs on a device
package     the wheel and the sdist, installed without torch into clean environments, doing the main job
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
MAX_WHEEL_BYTES = 45_000_000
ON_ALL_CORES = ("-n", "auto", "--dist", "worksteal")
ON_A_DEVICE = [
    *("tests/test_backends.py", "tests/test_bundle.py", "tests/test_caching.py", "tests/test_cli.py"),
    *("tests/test_decode.py", "tests/test_decode_paths.py", "tests/test_engines.py", "tests/test_geometry.py"),
    *("tests/test_house.py", "tests/test_images.py", "tests/test_manifest.py", "tests/test_preprocess.py"),
    *("tests/test_records.py", "tests/test_segment_command.py", "tests/test_segmenter.py", "tests/test_tiling.py"),
    *("tests/test_trt_runner.py", "tests/test_wire.py"),
]

if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:  # its other interpreters hide until they are named
    # newest first, so that plain `python3` stays a current one
    versions = subprocess.run(
        ["pyenv", "versions", "--bare"], check=True, capture_output=True, text=True
    ).stdout.split()
    os.environ["PYENV_VERSION"] = ":".join(reversed(versions))


@nox.session(python="3.11")
def check(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("pytest", *ON_ALL_CORES, *session.posargs)


@nox.session(python=["3.10", "3.12", "3.13"])
def torch_free(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    some = ON_A_DEVICE if session.python != "3.10" and not session.posargs else session.posargs
    session.run("pytest", *ON_ALL_CORES, *some)


@nox.session(python="3.11")
def package(session: nox.Session) -> None:
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder, silent=True)  # the sdist, and from it the wheel
        (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
        if wheel.stat().st_size > MAX_WHEEL_BYTES:
            session.error(f"{wheel.name} has {wheel.stat().st_size} bytes: at most {MAX_WHEEL_BYTES}")
        for built, extra in ((wheel, "openvino"), (sdist, "ort")):
            session.install("--force-reinstall", f"edgeseg[{extra}] @ {built.as_uri()}")
            session.chdir(folder)  # away from the checkout, so that what was installed is what is imported
            session.run("python", "-P", "-m", "edgeseg", "segment", "-o", f"{extra}.png", "--backend", extra)
            session.run(
                "python", "-P", "-c", "from edgeseg.decode import active_path as p; assert p().name == 'compiled', p()"
            )
            session.chdir(Path(__file__).parent)
