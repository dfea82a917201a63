"""The cut: in which form an image crosses the hop from preprocessing to inference, and what is left to do behind it.

| form | what crosses | bytes at 224 x 224 | left to the inference side |
| --- | --- | --- | --- |
| `jpeg` | the image as it came | its own | decode, resize, normalize |
| `u8` | resized pixels, HWC | 150,528 | normalize |
| `f16` | the normalized tensor, half precision | 301,056 | widen |
| `f32` | the normalized tensor: the model's own input | 602,112 | nothing |

All obey the model's one recipe. A tensor says by its dtype and shape which form it has, so an inference service takes
all of them, at any time, without a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from services.errors import ConfigurationError
from services.messages import Array, Recipe

# The output by which whoever decodes for another says how large the image was: int64 [1, 2], width and height, upright.
SIZE = "image_size"


class Form(Enum):
    """What crosses. The value is its name in settings."""

    JPEG = "jpeg"
    U8 = "u8"
    F16 = "f16"
    F32 = "f32"


def crossing(recipe: Recipe, form: Form) -> Recipe | None:
    """By which the tensor that crosses is made; None: none is, the image crosses as it came."""
    if form is Form.JPEG:
        return None
    if form is Form.U8:
        return replace(recipe, dtype="uint8", layout="HWC")
    return replace(recipe, dtype="float16") if form is Form.F16 else recipe


def form_of(tensor: Array, recipe: Recipe) -> Form | None:
    """The form that `tensor` (with its batch dimension of 1) has; None where it is none of a model with this recipe."""
    if tensor.dtype == object:
        return Form.JPEG if tensor.shape == (1,) else None
    for form in (Form.F32, Form.U8, Form.F16):
        made_by = crossing(recipe, form)
        assert made_by is not None  # noqa: S101 # only an encoded image is not made
        if tensor.dtype == made_by.dtype and tensor.shape == (1, *made_by.shape):
            return form
    return None


def forms(entries: Sequence[str], models: Sequence[str]) -> dict[str, Form]:
    """What a setting says of each of `models`: each entry is FORM, for all, or MODEL=FORM, which goes before.

    Raises `ConfigurationError`.
    """
    known = ", ".join(form.value for form in Form)
    chosen = dict.fromkeys(models, Form.F32)
    for entry in sorted(entries, key=lambda entry: "=" in entry):
        model, separator, name = entry.rpartition("=")
        if name not in {form.value for form in Form}:
            raise ConfigurationError(f"--cut '{entry}': there is no form '{name}'; use one of {known}")
        if separator and model not in chosen:
            raise ConfigurationError(
                f"--cut '{entry}': no link goes to a model '{model}'; there is {', '.join(models)}"
            )
        chosen.update({model: Form(name)} if separator else dict.fromkeys(models, Form(name)))
    return chosen
