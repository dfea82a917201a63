"""Generate `services/pb` from `protos/` (`make protos`). Needs the extra `dev`.

The generated code registers in a private descriptor pool: in the process-wide default pool it could not live beside
`tritonclient`, whose messages have the same names (they are the standard's) under another file name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
DEFAULT_POOL = "_descriptor_pool.Default()"
PRIVATE_POOL = "_descriptor_pool.DescriptorPool()"


def generate(out: Path) -> None:
    """Write `*_pb2.py` and `*_pb2.pyi` of every proto into the folder `out`. Raises `RuntimeError`."""
    protos = sorted(str(path.name) for path in HERE.glob("*.proto"))
    status = protoc.main(["protoc", f"-I{HERE}", f"--python_out={out}", f"--pyi_out={out}", *protos])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}")
    for path in out.glob("*_pb2.py"):
        code = path.read_text()
        if code.count(DEFAULT_POOL) != 1:
            raise RuntimeError(f"{path.name}: protoc's output has changed; expected {DEFAULT_POOL} once")
        path.write_text(code.replace(DEFAULT_POOL, PRIVATE_POOL))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "services" / "pb")
