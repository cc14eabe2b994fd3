"""Writes the name lists beside this file from NVIDIA's own Python bindings: `python3.10 make.py` (no GPU, 560 MB).

The bindings want libnvinfer, the plugins and the parser only to load: stubs whose functions return 0 serve for reading
names and docstrings. Python 3.10, since TensorRT 8.5 has no wheel for a later one; `cc`, `nm` and `readelf` on Linux.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WHEELS = {
    "8.5.3": "tensorrt==8.5.3.1",
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
}
# A runner of finished graphs makes no layers, plugins, calibrators or weights by hand.
LEFT_OUT = re.compile(r"Layer|Plugin|Calibrat|Uff|Caffe|Refitter|Weights|Algorithm|Loop|IfCond|IAttention|Consistency")


def main() -> None:
    for name, wheel in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            package = unpack(wheel, Path(folder))
            stub(package)
            run = [sys.executable, __file__, str(package)]
            listed = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        (HERE / f"{name}.json").write_text(listed)


def unpack(wheel: str, folder: Path) -> Path:
    """Download a wheel; take the Python files and the extension out of it, not the libraries; returns the package."""
    download = ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), wheel]
    subprocess.run([sys.executable, "-m", *download], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        wanted = [one for one in archive.namelist() if re.fullmatch(r"tensorrt\w*/(\w+\.py|tensorrt\.so)", one)]
        archive.extractall(folder, wanted)
    return folder / wanted[0].partition("/")[0]


def stub(package: Path) -> None:
    """Compile libraries of the names the extension asks for, with the entry points it asks for, beside it."""
    extension = str(package / "tensorrt.so")
    undefined = subprocess.run(["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True)
    needed = subprocess.run(["readelf", "-d", extension], check=True, capture_output=True, text=True)
    ours = re.findall(
        r" U (create\w+_INTERNAL|get\w+|initLibNv\w+|_ZN\d+nv(?:uff|caffe)parser\w+)$", undefined.stdout, re.M
    )
    source = package / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ours if name != "getenv"))
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", needed.stdout):
        make = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(package / library), str(source)]
        subprocess.run(make, check=True)


def listing(package: Path) -> dict[str, Any]:
    """Every name of the module; of enums the values, of classes the members with their signatures."""
    sys.path.insert(0, str(package.parent))
    trt = __import__(package.name)
    enums, classes = {}, {}
    for name, kind in sorted(walk(trt, "")):
        if hasattr(kind, "__members__"):
            enums[name] = {key: int(value) for key, value in sorted(kind.__members__.items())}
        else:
            classes[name] = {key: describe(kind, key) for key in sorted(members(kind))}
    return {"version": trt.__version__, "names": sorted(dir(trt)), "enums": enums, "classes": classes}


def walk(owner: Any, prefix: str) -> Any:
    for name, kind in vars(owner).items():
        if isinstance(kind, type) and not name.startswith("_") and not LEFT_OUT.search(name):
            yield prefix + name, kind
            yield from walk(kind, f"{prefix}{name}.")


def members(kind: type) -> set[str]:
    return {name for name in dir(kind) if name == "__init__" or not (hasattr(object, name) or "pybind11" in name)}


def describe(kind: type, name: str) -> Any:
    """ "property" or "read-only", "value" of a constant, of a method the list of its "(arguments) -> result"."""
    member = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    if isinstance(member, property):
        return "property" if member.fset else "read-only"
    if not callable(member) or isinstance(member, type):
        return "value"
    text = re.sub(r"\b\w+\.tensorrt\.", "", getattr(member, "__doc__", None) or "")
    found = re.findall(rf"^(?:\d+\. )?{name}\((?!\*args)(.*)\)( -> .*)?$", text, re.M)
    return [f"({re.sub(r'^self: [^,]*(, )?', '', arguments)}){result}" for arguments, result in found]


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(listing(Path(sys.argv[1])), indent=0, sort_keys=True))
