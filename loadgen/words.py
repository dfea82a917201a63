"""What an answer says, in a line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_MOST = 5  # things of one image that are named


def in_words(outputs: Mapping[str, Array]) -> str:
    """Of one image; `outputs`: as the door answers them, the image being the first of the leading dimension."""
    first = {name: value[0] for name, value in outputs.items()}
    match first:
        case {"boxes": boxes, "identities": identities, "similarities": similarities}:
            names = [
                f"{bytes(name).decode()} ({cosine:.2f})" if name else "somebody"
                for name, cosine in zip(identities, similarities, strict=True)
            ]
            return _list(len(boxes), "face", names)
        case {"boxes": boxes, "labels": labels, "scores": scores}:
            names = [f"{bytes(name).decode()} ({score:.2f})" for name, score in zip(labels, scores, strict=True)]
            return _list(len(boxes), "thing", names)
        case {"mask": mask, "labels": labels, "classes": classes}:
            shares = [f"{bytes(n).decode()} {(mask == c).mean():.0%}" for n, c in zip(labels, classes, strict=True)]
            return _list(len(classes), "class", shares)
        case {"depth": depth}:
            return f"{depth.min():.2f} to {depth.max():.2f} far, half of it within {np.median(depth):.2f}"
        case {"labels": labels, "scores": scores}:
            return f"{bytes(labels[0]).decode()} ({scores[0]:.2f})"
        case {"identities": identity, "similarities": similarity}:
            return f"{bytes(identity).decode()} ({similarity:.2f})" if identity else "nobody who is enrolled"
        case _:
            return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())


def _list(count: int, what: str, names: list[str]) -> str:
    if not count:
        return f"no {what}"
    several = what if count == 1 else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count} {several}: {', '.join(names[:_MOST])}{', ...' if count > _MOST else ''}"
