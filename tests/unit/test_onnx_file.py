"""Files of networks: built when they are not there, are others, or are damaged; else left alone."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from services.models import onnx_file


def _model(properties: dict[str, str]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    model = helper.make_model(graph)
    helper.set_model_props(model, properties)
    return model


MINE = onnx_file.properties("digest", exporter="1", license_="MIT")


@pytest.mark.parametrize(
    ("there", "written"),
    [
        (None, True),
        (MINE, False),
        ({**MINE, "license": "another"}, False),
        ({**MINE, "weights_sha256": "another"}, True),
        ({**MINE, "exporter": "0"}, True),
        ({}, True),
    ],
)
def test_a_file_is_built_where_it_is_not_what_is_wanted(
    tmp_path: Path, there: dict[str, str] | None, written: bool
) -> None:
    # Given a file, or none
    out = tmp_path / "folder" / "net.onnx"
    if there is not None:
        onnx_file.write(out, there | {"weights_sha256": "", "exporter": ""}, lambda: _model(there))
    builds: list[int] = []

    def build() -> onnx.ModelProto:
        builds.append(1)
        return _model(MINE)

    # When it is wanted
    assert onnx_file.write(out, MINE, build) is written
    # Then it is there, and nothing beside it, and only what was not there was built
    assert len(builds) == written
    assert {p.key: p.value for p in onnx.load(out).metadata_props}["weights_sha256"] == "digest"
    assert list(out.parent.iterdir()) == [out]


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    out.write_bytes(b"half of a")
    assert onnx_file.write(out, MINE, lambda: _model(MINE))
    assert onnx_file.words(out, written=True) == f"{out}: written, 0.0 MB\n"
    assert onnx_file.words(out, written=False) == f"{out}: is there already, 0.0 MB\n"
