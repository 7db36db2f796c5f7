"""A second device for machines without an accelerator.

`.to(device)` inside `with SecondDevice() as device` gives tensors that claim to be on PyTorch's "meta"
device; their content is on the CPU, where all operations run.  As on an accelerator, NumPy cannot access
them, and an operation on tensors of both devices fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_NUMBERS = ("_local_scalar_dense", "is_nonzero", "equal")
_COPIES = ("_to_copy", "copy_")
_LOOKS = ("_unsafe_view", "alias", "detach")


@pytest.fixture(params=["second device", "cuda"])
def other_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device that is not the CPU: the stand-in everywhere, and a GPU where there is one."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device in this machine")
        yield torch.device("cuda")
    else:
        with SecondDevice():
            yield DEVICE


class TensorElsewhere(Tensor):
    """A tensor on the second device; held: its content on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> TensorElsewhere:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=DEVICE, **shape
        )
        tensor.held = held
        return tensor

    def tolist(self) -> Any:
        """Through the host, as on an accelerator; PyTorch refuses it for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the context of the second device")


class SecondDevice(TorchDispatchMode):
    """Runs the operations of the second device.

    reads: bytes of every copy to the host.  numbers: number of single numbers read.  launched: name -> number
    of its operations there, without views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []
        self.numbers = 0
        self.launched = Counter[str]()
        self._factories = ExitStack()

    def __enter__(self) -> SecondDevice:
        self._factories.enter_context(_Factories())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._factories.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        tensors = list(_tensors([args, list(given.values())]))
        elsewhere = [tensor for tensor in tensors if isinstance(tensor, TensorElsewhere)]
        wanted = given.get("device")
        if not elsewhere and wanted != DEVICE:
            return func(*args, **given)
        if wanted is not None:
            given["device"] = torch.device("cpu")
        result = func(*_content(args), **{name: _content(value) for name, value in given.items()})
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _LOOKS:
            self.launched[name] += 1
        if name in _NUMBERS:
            self.numbers += 1
            return result
        to_host = name == "_to_copy" and wanted not in (None, DEVICE)
        if to_host or (name == "copy_" and not isinstance(args[0], TensorElsewhere)):
            self.reads.append(result.nbytes)
            return result
        # numbers (no dimensions) of the host may be mixed with tensors of any device
        if name not in _COPIES and any(t.dim() > 0 and not isinstance(t, TensorElsewhere) for t in tensors):
            raise RuntimeError(f"{func} of tensors on the host and on the second device")
        return _wrapped(result, tensors)


class _Factories(TorchFunctionMode):
    """`torch.tensor` drops the content when the device is "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") == DEVICE:
            return func(*args, **{**given, "device": "cpu"}).to(DEVICE)
        return func(*args, **given)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, which may be in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _content(value: Any) -> Any:
    """Arguments with the second device's tensors replaced by their content."""
    if isinstance(value, (list, tuple)):
        return type(value)(_content(item) for item in value)
    return value.held if isinstance(value, TensorElsewhere) else value


def _wrapped(result: Any, arguments: Sequence[Tensor]) -> Any:
    """Results of an operation as tensors elsewhere; what it changed in place stays itself."""
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(item, arguments) for item in result)
    if not isinstance(result, Tensor):
        return result
    same = [argument for argument in arguments if _content(argument) is result]
    return same[0] if same else TensorElsewhere(result)
