"""Seeded random networks as ONNX files, so that timing them takes no torch. `python -m` this module, where torch is.

They are the networks of `networks.py` for the models of the models file; their answers mean nothing. torch's exporter
that works by tracing is used: the newer one needs packages of its own, and these networks have no branches to lose.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from services.errors import ConfigurationError
from services.models import networks
from services.models.catalogue import INPUT, ModelSpec, load_catalogue

_OPSET = 17
_SEED = 0
# Model of the models file that comes with the project -> network
ARCHITECTURES: Mapping[str, str] = {
    "mobilenet-v3-large-seeded": "mobilenet_v3_large",
    "resnet50-seeded": "resnet50",
    "resnet152-seeded": "resnet152",
    "vit-b-16-seeded": "vit_b_16",
    "lraspp-mobilenet-v3-large": "lraspp_mobilenet_v3_large",
    "ssdlite320-mobilenet-v3-large": "ssdlite320_mobilenet_v3_large",
    "depth-mobilenet-v3-small": "depth_mobilenet_v3_small",
    "embed-mobilenet-v3-small": "embed_mobilenet_v3_small",
}


class _Named(torch.nn.Module):  # type: ignore[misc] # torch may be absent where types are checked
    """A graph has its outputs in an order: that of the models file."""

    def __init__(self, network: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.network(images)
        if isinstance(outputs, torch.Tensor):  # a classifier's only one
            return (outputs,)
        return tuple(outputs[name] for name in self.names)


def export(spec: ModelSpec, architecture: str, out: Path) -> None:
    """Write the network for `spec` to `out`, atomically: `images` [N, 3, size, size] -> the outputs of `spec`."""
    network = networks.build(architecture, spec.recipe.size, seed=_SEED, name=spec.name)
    names = [output.name for output in spec.outputs]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of what it takes for constant, which here is constant
        torch.onnx.export(
            _Named(network, names).eval(),
            (torch.zeros(1, 3, spec.recipe.size, spec.recipe.size),),
            str(temporary),
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: {0: "N"} for name in (INPUT, *names)},
        )
    temporary.replace(out)


def main(argv: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Write seeded random networks as ONNX files, for timing only.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(ARCHITECTURES)} (default: all)")
    parser.add_argument("--missing", action="store_true", help="only those whose file is not there yet")
    arguments = parser.parse_args(argv)
    catalogue = load_catalogue()
    try:
        for name in arguments.models or ARCHITECTURES:
            if name not in ARCHITECTURES:
                raise ConfigurationError(f"there is no seeded '{name}'; there are {', '.join(ARCHITECTURES)}")
            spec = catalogue[name]
            assert spec.onnx is not None  # noqa: S101 # so it is in the models file
            if arguments.missing and spec.onnx.exists():
                continue
            export(spec, ARCHITECTURES[name], spec.onnx)
            sys.stdout.write(f"{spec.onnx}: written, {spec.onnx.stat().st_size / 1e6:.1f} MB\n")
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
