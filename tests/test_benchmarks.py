import os
import subprocess
import sys

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
