"""The models file: what can be served, as data. `models.toml` beside this module is the default, and teaches the form.

Paths in a models file are relative to it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.errors import ConfigurationError
from services.messages import Recipe, TensorSpec

DEFAULT = Path(__file__).with_name("models.toml")
INPUT = "images"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model. Exactly one of `onnx`, `exported`, `architecture` and `law` is set.

    `law`: (a, b), an EMULATED service time of a + b * batch milliseconds. `outputs`: -1 is the batch dimension.
    """

    name: str
    task: str
    recipe: Recipe
    outputs: tuple[TensorSpec, ...]
    onnx: Path | None = None
    exported: Path | None = None
    architecture: str | None = None
    weights: Path | None = None
    seed: int = 0
    law: tuple[float, float] | None = None
    labels: Path | None = None

    @property
    def timing_only(self) -> bool:
        """Its answers mean nothing: a seeded random network, or an emulated one."""
        return self.law is not None or (self.architecture is not None and self.weights is None)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the recipe prepares."""
        return (TensorSpec(INPUT, self.recipe.dtype, (-1, *self.recipe.shape)),)

    def label_names(self) -> tuple[str, ...]:
        """Line i names class i; empty without a labels file. Raises `ConfigurationError`."""
        if self.labels is None:
            return ()
        try:
            return tuple(self.labels.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise ConfigurationError(f"model '{self.name}': labels cannot be read: {error}") from None


_SOURCES = ("onnx", "exported", "architecture", "law")
_KEYS = {"task", "recipe", "outputs", "weights", "seed", "labels", *_SOURCES}
_RECIPE_KEYS = {"size", "crop", "mean", "std", "layout", "dtype", "interpolation"}
_CHOICES = {"layout": ("CHW", "HWC"), "dtype": ("float32", "uint8"), "interpolation": ("area", "linear", "cubic")}


def load_catalogue(path: Path | None = None) -> dict[str, ModelSpec]:
    """Name -> model. Raises `ConfigurationError` that names the file, the model, the key, the cause and the remedy."""
    file = path or DEFAULT
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"models file {file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"models file {file} is not TOML: {error}") from None
    return {name: _model(name, table, file) for name, table in raw.items()}


def _model(name: str, raw: Any, file: Path) -> ModelSpec:
    where = f"{file}: model '{name}'"
    table = _only(raw, _KEYS, where)
    given = [key for key in _SOURCES if key in table]
    if len(given) != 1:
        raise ConfigurationError(f"{where} needs exactly one of {', '.join(_SOURCES)}; it has {given or 'none'}")
    if "weights" in table and given != ["architecture"]:
        raise ConfigurationError(f"{where}: weights go with architecture; {given[0]} brings its own")
    return ModelSpec(
        name=name,
        task=_get(table, "task", str, where),
        recipe=_recipe(_get(table, "recipe", dict, where), f"{where}: recipe"),
        outputs=_outputs(_get(table, "outputs", dict, where), f"{where}: outputs"),
        # An ONNX file may still have to be built (`make models`), so that it is missing is said when it is loaded.
        onnx=_path(table, "onnx", where, file, must_exist=False),
        exported=_path(table, "exported", where, file),
        architecture=_get(table, "architecture", str, where) if "architecture" in table else None,
        weights=_path(table, "weights", where, file),
        seed=_get(table, "seed", int, where) if "seed" in table else 0,
        law=_law(table["law"], where) if "law" in table else None,
        labels=_path(table, "labels", where, file),
    )


def _only(raw: Any, known: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{where} is {raw!r}, not a table")
    for key in raw:
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
    return raw


def _get(table: Mapping[str, Any], key: str, type_: type, where: str) -> Any:
    if key not in table:
        raise ConfigurationError(f"{where}: '{key}' is missing")
    value = table[key]
    if not isinstance(value, type_) or isinstance(value, bool):
        raise ConfigurationError(f"{where}: '{key}' is {value!r}, not a {type_.__name__}")
    return value


def _path(table: Mapping[str, Any], key: str, where: str, file: Path, *, must_exist: bool = True) -> Path | None:
    if key not in table:
        return None
    path: Path = (file.parent / _get(table, key, str, where)).resolve()
    if must_exist and not path.exists():
        raise ConfigurationError(f"{where}: {key} = {path} is not there; paths are relative to the models file")
    return path


def _law(value: Any, where: str) -> tuple[float, float]:
    match value:
        case [int() | float() as a, int() | float() as b] if a >= 0 and b >= 0:
            return float(a), float(b)
    raise ConfigurationError(
        f"{where}: law is {value!r}; give [a, b], milliseconds, for a service time of a + b * batch"
    )


def _recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    table = _only(raw, _RECIPE_KEYS, where)
    size, crop = _get(table, "size", int, where), _get(table, "crop", int, where)
    if not 1 <= size <= crop <= 4096:
        raise ConfigurationError(f"{where}: 1 <= size <= crop <= 4096 does not hold for size {size}, crop {crop}")
    words = {key: table[key] for key in _CHOICES if key in table}
    for key, value in words.items():
        if value not in _CHOICES[key]:
            raise ConfigurationError(f"{where}: {key} is {value!r}; use one of {', '.join(_CHOICES[key])}")
    std = _triple(table, "std", where)
    if 0.0 in std:
        raise ConfigurationError(f"{where}: std must not be 0")
    return Recipe(size, crop, _triple(table, "mean", where), std, **words)


def _triple(table: Mapping[str, Any], key: str, where: str) -> tuple[float, float, float]:
    match table.get(key):
        case [int() | float() as r, int() | float() as g, int() | float() as b]:
            return float(r), float(g), float(b)
    raise ConfigurationError(f"{where}: {key} is {table.get(key)!r}; give three numbers (R, G, B; 0..255)")


def _outputs(raw: Mapping[str, Any], where: str) -> tuple[TensorSpec, ...]:
    specs = []
    for name, value in raw.items():
        match value:
            case {"dtype": str() as dtype, "shape": [*shape]} if shape and all(isinstance(n, int) for n in shape):
                specs.append(TensorSpec(name, dtype, tuple(shape)))
            case _:
                raise ConfigurationError(
                    f"{where}: {name} is {value!r}; write {{ dtype = 'float32', shape = [-1, 1000] }}"
                )
    if not specs:
        raise ConfigurationError(f"{where} is empty; name at least one")
    return tuple(specs)
