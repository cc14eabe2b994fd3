"""Where CUDA's runtime library lies, its functions' arguments, and what to do where it finds nothing to work on."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from ctypes import c_int, c_uint, c_void_p
from glob import glob
from typing import Any

_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # by their arguments; pointers and handles are void*: 64 bits, not int's 32
    "cudaRuntimeGetVersion": (c_void_p,),
    "cudaDriverGetVersion": (c_void_p,),
    "cudaGetLastError": (),
    "cudaGetErrorString": (c_int,),
    "cudaGetDeviceCount": (c_void_p,),
    "cudaGetDevice": (c_void_p,),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaPointerGetAttributes": (c_void_p, c_void_p),
    "cudaMalloc": (c_void_p, ctypes.c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (c_void_p, ctypes.c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaHostGetDevicePointer": (c_void_p, c_void_p, c_uint),
    "cudaMemcpyAsync": (c_void_p, c_void_p, ctypes.c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, c_void_p),
    "cudaEventCreateWithFlags": (c_void_p, c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    # Not cudaGraphInstantiate, whose arguments differ between CUDA 11 and 12; this one is there since 11.4.
    "cudaGraphInstantiateWithFlags": (c_void_p, c_void_p, ctypes.c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}
NO_DRIVER_FOR_IT, NO_DEVICE = 35, 100

INSTALL = (
    "on a Jetson `sudo apt install nvidia-jetpack`, else `pip install nvidia-cuda-runtime-cu12` "
    "(CUDA 13: nvidia-cuda-runtime), or set EDGESEG_CUDART to its file"
)
_CONTAINER = "start containers with --gpus all (on a Jetson --runtime nvidia)"
_ADVICE = {
    2: "free memory of the GPU, or of the host",
    3: f"reboot if the driver was just updated; {_CONTAINER}",
    34: "take the toolkit's folder `stubs` out of LD_LIBRARY_PATH",
    46: "another process holds the GPU, or its mode is prohibited: see nvidia-smi",
    802: "start nvidia-fabricmanager",
    803: "the driver's parts are of two versions: reboot",
    804: "remove the package cuda-compat, or take its folder out of LD_LIBRARY_PATH",
    999: f"reboot; {_CONTAINER}; on a Jetson be in the groups video and render",
}


def open_library(path: str) -> ctypes.CDLL:
    """A libcudart with the types of all its functions set. Raises OSError, saying why, if it is none, or too old."""
    library = ctypes.CDLL(path)
    for name, arguments in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise OSError(f"it has no {name}, which CUDA has since 11.4") from None
        function.argtypes, function.restype = arguments, c_int
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def candidates() -> Iterator[str]:
    """Where libcudart may lie: what the loader knows, toolkits, then wheels; newer CUDAs first."""
    if os.name == "nt":
        names = ["cudart64_13.dll", "cudart64_12.dll", "cudart64_110.dll"]
        toolkit = os.environ.get("CUDA_PATH")
        folders = [os.path.join(toolkit, part) for part in ("bin", "bin/x64")] if toolkit else []
        wheels = ["cu13/bin/x86_64", "cuda_runtime/bin"]
    else:
        names = ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
        folders = [*sorted(glob("/usr/local/cuda*/lib64")), *sorted(glob("/usr/local/cuda*/targets/*/lib"))]
        wheels = ["cu13/lib", "cuda_runtime/lib"]
    yield from names
    folders += [os.path.join(entry, "nvidia", wheel) for entry in sys.path for wheel in wheels]
    yield from (found for folder in folders for name in names if os.path.isfile(found := os.path.join(folder, name)))


def no_device(code: int, text: str, path: str, driver: tuple[int, int], runtime: tuple[int, int]) -> str:
    """Why a libcudart has no device to work on, and what to do; driver (0, 0): there is none."""
    if code == NO_DRIVER_FOR_IT and driver == (0, 0):
        return f"CUDA finds no NVIDIA driver (error {code}): install it; {_CONTAINER}"
    if code == NO_DRIVER_FOR_IT:
        return (
            f"the NVIDIA driver serves CUDA {driver[0]}.{driver[1]} at most, {path} is CUDA {runtime[0]}.{runtime[1]} "
            f"(error {code}): update the driver, or set EDGESEG_CUDART to a libcudart of CUDA {driver[0]}"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == NO_DEVICE and hidden is not None:
        return f"CUDA sees no GPU (error {code}): CUDA_VISIBLE_DEVICES is {hidden!r}, unset it"
    if code == NO_DEVICE:
        return f"CUDA sees no GPU (error {code}): see whether nvidia-smi lists one; {_CONTAINER}"
    return f"CUDA cannot start: {text} (error {code}): {_ADVICE.get(code, _ADVICE[999])}"
