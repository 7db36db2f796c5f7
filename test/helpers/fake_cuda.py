"""A CUDA device without a GPU: tensors that have shapes, dtypes and devices, but no numbers.

PyTorch's FakeTensorMode runs all operations on them, and rejects mixed devices and reading of numbers.
Without a GPU it only lacks the object that sets the current device; here that does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fast3r_ros.model import attention

CUDA = torch.device("cuda", 0)
TORCH = Path(torch.__file__).parent
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
}
"""


@pytest.fixture(scope="session")
def device_guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The guard, for the whole process; with a GPU, its own is used."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda is not None:
        pytest.skip(f"PyTorch {torch.__version__} asks the driver of a GPU, and there is none")
    if shutil.which("g++") is None:
        pytest.skip("the stand-in for a GPU is built with g++, which is not installed")
    folder = tmp_path_factory.mktemp("guard")
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(GUARD)
    strings = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-shared", "-fPIC", "-std=c++20", strings, f"-I{TORCH / 'include'}", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    ctypes.CDLL(str(TORCH / "lib" / "libc10.so"), ctypes.RTLD_GLOBAL)  # it uses that one's symbols
    ctypes.CDLL(str(library))


@pytest.fixture
def fake_cuda(device_guard: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Inside, "cuda" is such a device, of compute capability 9.0; launches on it are listed."""
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(attention, "_verdicts", {})  # verdicts on fakes must not be cached
    with FakeTensorMode(), Launches() as launches, torch.no_grad():
        yield launches


class Launches(TorchDispatchMode):
    """names: operations with a tensor on the GPU, and their number.  host: those with a tensor of the host,
    which a CUDA graph cannot record; numbers (no dimensions) are passed with the launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()
        self.host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        if any(tensor.device.type == "cuda" for tensor in tensors):
            self.names[name] += 1
        if any(tensor.device.type == "cpu" and tensor.dim() > 0 for tensor in tensors):
            self.host.append(name)
        return result
