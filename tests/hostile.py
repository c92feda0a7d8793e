"""Files of weights that run code when they are opened the ordinary way: a payload that makes a folder, or a file."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Payload:
    """Makes an empty folder when it is unpickled the ordinary way."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)


class _Script(nn.Module):
    """Writes a file when it is loaded as TorchScript."""

    def __init__(self, trace: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.trace = trace
        self.weight = torch.ones(1)
        for number, tensor in enumerate(state.values()):
            self.register_buffer(f"tensor{number}", tensor)

    def forward(self) -> Tensor:
        return self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.trace, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.trace, self.weight, self.training = state
        torch.save(self.weight, self.trace)


def script(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """A TorchScript archive whose ``__setstate__`` writes a file."""
    torch.jit.save(torch.jit.script(_Script(str(trace), state)), file)


def archive(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """A file of ``torch.save`` with an object among the tensors."""
    torch.save({**state, "extra": Payload(trace)}, file)


def legacy(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """The same in torch's format from before version 1.6."""
    torch.save({**state, "extra": Payload(trace)}, file, _use_new_zipfile_serialization=False)


def nested(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """A file of ``torch.save`` within the pickle, which torch opens with ``weights_only=False``."""
    inner = io.BytesIO()
    torch.save(Payload(trace), inner)

    class Inner:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    torch.save({**state, "extra": Inner()}, file)


def plain(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """A pickle that torch did not write."""
    file.write_bytes(pickle.dumps({"extra": Payload(trace)}))


def tar(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """The tar format of torch's first versions."""
    content = {"sys_info": [{}], "storages": [0, []], "tensors": [0], "pickle": [Payload(trace)]}
    with tarfile.open(file, "w") as target:
        for name, items in content.items():
            data = b"".join(pickle.dumps(item, 2) for item in items)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))


def packed(file: Path, trace: Path, state: Mapping[str, Tensor]) -> None:
    """A plain archive, compressed, that holds code beside the tensors."""
    script(file, trace, state)
    with zipfile.ZipFile(file) as source:
        content = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in content.items():
            target.writestr(name, data)


FORMATS: dict[str, Callable[[Path, Path, Mapping[str, Tensor]], None]] = {
    made.__name__: made for made in (script, archive, legacy, nested, plain, tar, packed)
}
