"""The lane to a CUDA device, with a stand-in for `torch.cuda` on the CPU: what it does in which order, its ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.messages import Recipe, TensorSpec
from services.models.catalogue import ModelSpec
from tests.fake_cuda import FakeCuda, lane

pytestmark = pytest.mark.torch

RECIPE = Recipe(8, 8, (0, 0, 0), (1, 1, 1))


def batch(*shape: int) -> Any:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    values.flags.writeable = False
    return values


def test_a_batch_goes_there_and_comes_back_with_its_ledger() -> None:
    # Given a lane, and a model that doubles and counts
    cuda = FakeCuda()
    way = lane(cuda)

    def compute(tensor: Any) -> dict[str, Any]:
        cuda.done.append("compute")
        return {"doubled": tensor.transpose(0, 1) * 2, "sums": tensor.sum(1).half()}

    timeline = Timeline("inference")
    outputs = way.run(batch(3, 4), compute, timeline)
    # Then the answers are right, also of what does not lie in order
    np.testing.assert_array_equal(outputs["doubled"], batch(3, 4).T * 2)
    np.testing.assert_array_equal(outputs["sums"], batch(3, 4).sum(1).astype(np.float16))
    # And the device is waited for once, after everything
    assert cuda.done == ["event", "event", "compute", "event", "event", "wait"]
    # And the ledger has the device's time of inference, and sums
    assert [tile.stage for tile in timeline.tiles] == [Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD]
    assert timeline.tiles[1].duration_ns == 10_000
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


def test_buffers_are_used_again_and_outputs_are_the_callers() -> None:
    cuda = FakeCuda()
    way = lane(cuda)
    first = way.run(batch(4, 5), lambda tensor: {"same": tensor}, Timeline("test"))["same"]
    buffers = dict(way._pinned)
    # When a smaller batch follows, and a larger one
    second = way.run(batch(2, 5) + 100, lambda tensor: {"same": tensor}, Timeline("test"))["same"]
    assert {name: buffer.data_ptr() for name, buffer in way._pinned.items()} == {
        name: buffer.data_ptr() for name, buffer in buffers.items()
    }
    third = way.run(batch(8, 5) + 200, lambda tensor: {"same": tensor}, Timeline("test"))["same"]
    # Then each has its own answer, to keep and to write into
    np.testing.assert_array_equal(first, batch(4, 5))
    np.testing.assert_array_equal(second, batch(2, 5) + 100)
    np.testing.assert_array_equal(third, batch(8, 5) + 200)
    first[...] = -1
    np.testing.assert_array_equal(way.run(batch(4, 5), lambda t: {"same": t}, Timeline("test"))["same"], batch(4, 5))
    # And four events serve all of them
    assert len(cuda.events) == 4


def test_a_batch_that_fails_is_waited_for_before_its_buffer_is_used_again() -> None:
    cuda = FakeCuda()
    way = lane(cuda)

    def fail(tensor: Any) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        way.run(batch(2, 2), fail, Timeline("test"))
    assert cuda.done[-1] == "drain"
    np.testing.assert_array_equal(way.run(batch(2, 2), lambda t: {"x": t}, Timeline("test"))["x"], batch(2, 2))


def test_the_torch_backend_computes_on_its_lane() -> None:
    import torch

    from services.inference.backends.torch import TorchBackend

    cuda = FakeCuda()
    spec = ModelSpec("sum", "classification", RECIPE, (TensorSpec("logits", "float32", (-1, 3)),))
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3)).eval()
    backend = TorchBackend(network, spec, lane(cuda))
    values = batch(2, 3, 8, 8)
    timeline = Timeline("inference")
    outputs = backend.infer(values, timeline)
    with torch.inference_mode():
        expected = network(torch.from_numpy(values.copy())).numpy()
    np.testing.assert_array_equal(outputs["logits"], expected)
    assert [tile.stage for tile in timeline.tiles] == [Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD]
    with pytest.raises(Internal, match="torch failed"):
        backend.infer(batch(2, 3, 4, 4), Timeline("test"))
    backend.close()
    assert cuda.done[-1] == "empty"
    with pytest.raises(Internal, match="closed"):
        backend.infer(values, Timeline("test"))


@pytest.mark.parametrize(("precision", "most"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_a_reduced_precision_is_used_and_answers_in_float32(precision: str, most: float) -> None:
    import torch

    from services.inference.backends.torch import TorchBackend

    spec = ModelSpec("net", "classification", RECIPE, (TensorSpec("logits", "float32", (-1, 3)),))
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 3)).eval()
    values = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = TorchBackend(network, spec, None).infer(values, Timeline("test"))["logits"]
    # When it is asked for
    reduced = TorchBackend(network, spec, None, precision).infer(values, Timeline("test"))["logits"]
    # Then the answers are float32, near, and not the same
    assert reduced.dtype == np.float32
    error = np.abs(reduced - expected).max() / np.ptp(expected)
    assert 0 < error < most


def test_tf32_is_of_gpus() -> None:
    from services.inference import backends

    spec = ModelSpec("net", "classification", RECIPE, (), architecture="resnet18")
    with pytest.raises(ConfigurationError, match=r"'tf32' is of NVIDIA's GPUs; .*--device cuda"):
        backends.load("torch", spec, "cpu", 1, precision="tf32")
