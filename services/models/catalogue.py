"""The models file: what can be served, as data. `models.toml` beside this module is the default, and teaches the form.

Paths in a models file are relative to it.
"""

from __future__ import annotations

import math
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
    `random`: the file holds a seeded random network. `threshold`: the least score that the task reports, 0 to 1.
    `acceleration`: k, an EMULATED accelerator: the real model's service time, divided by k, and its recorded outputs;
    `record`: the folder of that recording.
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
    random: bool = False
    threshold: float | None = None
    acceleration: float | None = None
    record: Path | None = None

    @property
    def emulated(self) -> bool:
        """Its times are not a device's: every number that comes out of it is labelled so."""
        return self.law is not None or self.acceleration is not None

    @property
    def timing_only(self) -> bool:
        """Its answers mean nothing: a seeded random network, or an emulated one."""
        return self.random or self.law is not None or (self.architecture is not None and self.weights is None)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the recipe prepares."""
        return (TensorSpec(INPUT, self.recipe.dtype, (-1, *self.recipe.shape)),)

    def label_names(self) -> tuple[str, ...]:
        """Line i names class i; empty without a labels file. Raises `ConfigurationError`."""
        if self.labels is None:
            return ()
        try:
            names = tuple(self.labels.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"model '{self.name}': labels {self.labels} cannot be read: {error}; give a UTF-8 text, a name per line"
            ) from None
        # A label too many (a background class, a header) would give every class its neighbour's name.
        match self.outputs:
            case (TensorSpec(shape=(_, classes)),) if classes not in (-1, len(names)):
                raise ConfigurationError(
                    f"model '{self.name}': labels {self.labels} has {len(names)} lines, output "
                    f"'{self.outputs[0].name}' {classes} classes; line i (from 0) must name class i"
                )
        return names


_SOURCES = ("onnx", "exported", "architecture", "law")
_KEYS = {
    "task",
    "recipe",
    "outputs",
    "weights",
    "seed",
    "labels",
    "random",
    "threshold",
    "acceleration",
    "record",
    *_SOURCES,
}
_RECIPE_KEYS = {"size", "crop", "mean", "std", "layout", "dtype", "interpolation", "fit"}
_CHOICES = {
    "layout": ("CHW", "HWC"),
    "dtype": ("float32", "uint8"),
    "interpolation": ("area", "linear", "cubic"),
    "fit": ("centre", "stretch", "letterbox"),
}
# What the wire can carry.
_DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
_EXAMPLES = {
    "task": "task = 'classification'",
    "recipe": "recipe = { size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }",
    "outputs": "outputs = { logits = { dtype = 'float32', shape = [-1, 1000] } }",
    "size": "size = 224",
    "crop": "crop = 256",
    "mean": "mean = [127, 127, 127]",
    "std": "std = [128, 128, 128]",
    "law": "law = [2.5, 0.4]",
    "seed": "seed = 1",
    "onnx": "onnx = 'FILE.onnx'",
    "exported": "exported = 'FILE.pt2'",
    "architecture": "architecture = 'resnet50'",
    "weights": "weights = 'FILE.pth'",
    "labels": "labels = 'FILE.txt'",
    "record": "record = 'FOLDER'",
}


def load_catalogue(path: Path | None = None) -> dict[str, ModelSpec]:
    """Name -> model. Raises `ConfigurationError` that names the file, the model, the key, the cause and the remedy."""
    file = path or DEFAULT
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"models file {file} cannot be read: {error}; correct --models-file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"models file {file} is not TOML: {error}; {DEFAULT} shows the form") from None
    if not raw:
        raise ConfigurationError(f"models file {file} has no model; {DEFAULT} shows the form")
    return {name: _model(name, table, file) for name, table in raw.items()}


def _model(name: str, raw: Any, file: Path) -> ModelSpec:
    where = f"{file}: model '{name}'"
    table = _only(raw, _KEYS, where)
    given = [key for key in _SOURCES if key in table]
    if len(given) != 1:
        raise ConfigurationError(
            f"{where}: give exactly one of {', '.join(_SOURCES)}; it has {' and '.join(given) or 'none'}"
        )
    if "weights" in table and given != ["architecture"]:
        raise ConfigurationError(f"{where}: weights go with architecture; {given[0]} brings its own: remove weights")
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
        random=_flag(table, "random", where),
        threshold=_threshold(table["threshold"], where) if "threshold" in table else None,
        acceleration=_acceleration(table, where),
        record=_path(table, "record", where, file, must_exist=False),
    )


def _only(raw: Any, known: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{where} is {raw!r}, not a table with {', '.join(sorted(known))}")
    for key in raw:
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
    return raw


def _get(table: Mapping[str, Any], key: str, type_: type, where: str) -> Any:
    if key not in table:
        raise ConfigurationError(f"{where}: '{key}' is missing; write {_EXAMPLES[key]}")
    value = table[key]
    if not isinstance(value, type_) or isinstance(value, bool):
        raise ConfigurationError(f"{where}: '{key}' is {value!r}; write {_EXAMPLES[key]}")
    return value


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where}: '{key}' is {value!r}; write {key} = true, or leave it out")
    return value


def _threshold(value: Any, where: str) -> float:
    numbers = _numbers([value], 1, 0)
    if numbers is None or numbers[0] > 1:
        raise ConfigurationError(f"{where}: threshold is {value!r}; give the least score that counts, from 0 to 1")
    return numbers[0]


def _path(table: Mapping[str, Any], key: str, where: str, file: Path, *, must_exist: bool = True) -> Path | None:
    if key not in table:
        return None
    path: Path = (file.parent / _get(table, key, str, where)).resolve()
    if must_exist and not path.is_file():
        raise ConfigurationError(f"{where}: {key} = {path} is no file that is there; paths are relative to {file}")
    return path


def _numbers(value: Any, count: int, minimum: float) -> tuple[float, ...] | None:
    """`value` as that many finite numbers from `minimum` on; None if it is anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
        return None
    numbers = tuple(float(x) for x in value)
    return numbers if all(math.isfinite(x) and x >= minimum for x in numbers) else None


def _law(value: Any, where: str) -> tuple[float, float]:
    numbers = _numbers(value, 2, 0)
    if numbers is None:
        raise ConfigurationError(
            f"{where}: law is {value!r}; give [a, b], milliseconds from 0 on, for a service time of a + b * batch"
        )
    return numbers[0], numbers[1]


def _acceleration(table: Mapping[str, Any], where: str) -> float | None:
    if "acceleration" not in table:
        if "record" in table:
            raise ConfigurationError(
                f"{where}: record goes with acceleration; write acceleration = 8, say, or remove it"
            )
        return None
    value = table["acceleration"]
    numbers = _numbers([value], 1, 1)
    if numbers is None:
        raise ConfigurationError(
            f"{where}: acceleration is {value!r}; give the number, from 1 on, that measured times are divided by"
        )
    if "law" in table:
        raise ConfigurationError(f"{where}: acceleration divides a real model's times, and a law has none: remove one")
    if "record" not in table:
        raise ConfigurationError(
            f"{where}: acceleration needs a folder for what the real model took and answered; write record = 'FOLDER'"
        )
    return numbers[0]


def _recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    table = _only(raw, _RECIPE_KEYS, where)
    words = {key: table[key] for key in _CHOICES if key in table}
    for key, value in words.items():
        if value not in _CHOICES[key]:
            raise ConfigurationError(f"{where}: {key} is {value!r}; use one of {', '.join(_CHOICES[key])}")
    size = _get(table, "size", int, where)
    whole = table.get("fit", "centre") != "centre"
    crop = size if whole and "crop" not in table else _get(table, "crop", int, where)
    if whole and crop != size:
        raise ConfigurationError(
            f"{where}: crop is {crop}, but with fit = {table['fit']!r} nothing is cut off: leave crop out"
        )
    if not 1 <= size <= crop <= 4096:
        raise ConfigurationError(
            f"{where}: size is {size}, crop {crop}; the shorter side is resized to crop, then size x size is cut out, "
            "so 1 <= size <= crop <= 4096"
        )
    return Recipe(size, crop, _channels(table, "mean", where, -math.inf), _channels(table, "std", where, 1e-6), **words)


def _channels(table: Mapping[str, Any], key: str, where: str, minimum: float) -> tuple[float, float, float]:
    numbers = _numbers(_get(table, key, list, where), 3, minimum)
    if numbers is None:
        positive = ", above 0" if minimum > 0 else ""
        raise ConfigurationError(
            f"{where}: {key} is {table[key]!r}; give three numbers for R, G, B on the scale 0..255{positive}"
        )
    return numbers[0], numbers[1], numbers[2]


def _outputs(raw: Mapping[str, Any], where: str) -> tuple[TensorSpec, ...]:
    if not raw:
        raise ConfigurationError(f"{where} is empty; write {_EXAMPLES['outputs']}")
    return tuple(_output(name, value, f"{where}: {name}") for name, value in raw.items())


def _output(name: str, raw: Any, where: str) -> TensorSpec:
    table = _only(raw, {"dtype", "shape"}, where)
    dtype, shape = table.get("dtype"), table.get("shape")
    if dtype not in _DTYPES:
        raise ConfigurationError(f"{where}: dtype is {dtype!r}; use one of {', '.join(_DTYPES)}")
    if (
        not isinstance(shape, list)
        or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        or shape[:1] != [-1]
        or any(n < 1 and n != -1 for n in shape)
    ):
        raise ConfigurationError(
            f"{where}: shape is {shape!r}; write [-1, 1000], say: the batch first, and -1 for what is not fixed"
        )
    return TensorSpec(name, dtype, tuple(shape))
