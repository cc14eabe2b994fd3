import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg import benchmarks


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("networks", "torch", "export"), ("int8", "onnx", "export"), ("decode_speed", "cv2", "openvino")],
)
def test_a_missing_package_is_one_line(name, package, extra, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('none here', name={package!r})")
    command = [sys.executable, "-m", f"edgeseg.benchmarks.{name}", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stderr == f'{name}: this needs the package {package}: pip install "edgeseg[{extra}]"\n'
    assert done.returncode == 1


def test_only_a_benchmark_that_is_run_shortens_errors():
    assert sys.excepthook is not benchmarks._in_one_line


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: getrusage is all there is")
def test_a_child_s_peak_memory_is_its_own():
    held = bytearray(b"1") * (300 << 20)
    program = "from edgeseg.benchmarks.peak import peak_bytes; {}; print(peak_bytes())"
    small, large = (
        int(subprocess.run([sys.executable, "-c", program.format(work)], check=True, capture_output=True).stdout)
        for work in ("pass", "bytearray(b'1') * (100 << 20)")
    )
    del held
    assert 5e6 < small < 60e6
    assert 100e6 < large - small < 120e6
