"""The generated code is fresh, and it lives beside tritonclient's, whichever comes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OURS = "from services.pb import open_inference_pb2 as ours"
THEIRS = "from tritonclient.grpc import service_pb2 as theirs"
CHECK = """
request = ours.ModelInferRequest(model_name='m', id='1', raw_input_contents=[b'abc'])
request.inputs.add(name='image', datatype='BYTES', shape=[1])
request.parameters['probe'].bool_param = True
encoded = request.SerializeToString()
assert theirs.ModelInferRequest.FromString(encoded).SerializeToString() == encoded
response = theirs.ModelConfigResponse()
response.config.name, response.config.max_batch_size, response.config.backend = 'm', 8, 'x'
response.config.dynamic_batching.max_queue_delay_microseconds = 5
response.config.input.add(name='i', data_type=11, dims=[3, 4])
assert ours.ModelConfigResponse.FromString(response.SerializeToString()).config.input[0].dims == [3, 4]
"""


def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", tmp_path], check=True, timeout=60)  # noqa: S603
    for fresh in tmp_path.iterdir():
        committed = ROOT / "services" / "pb" / fresh.name
        assert committed.read_text() == fresh.read_text(), f"{committed} is stale: run `make protos`"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)])
def test_ours_and_tritons_messages_live_in_one_process(order: tuple[str, str]) -> None:
    code = "\n".join([*order, CHECK])
    done = subprocess.run(  # noqa: S603 # our own code
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
