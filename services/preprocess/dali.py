"""JPEGs decoded by NVIDIA DALI (nvImageCodec: on the GPU), and all else as `services.preprocess.gpu` does it.

What has run where: in tests DALI really decodes, with its operator on the CPU, and hands its pixels over; **its
operator on the GPU has not run yet**, and is taken by its docstrings' word.

* No pipeline object, which has a prefetch queue that the ledger would not see, and one time for all: DALI's dynamic
  mode calls one operator, for one image, in the calling thread, on its lane's stream. So `decode` is between two events
  of that stream, as in `gpu`, and nothing waits anywhere else.
* The pixels stay where DALI wrote them: torch takes them over by DLPack, without a copy. From there on it is `gpu`'s
  code: upright, fit, resize, normalize, download, with the same differences from OpenCV.
* On the GPU: baseline and progressive JPEGs, by the hardware decoder where the GPU has one, else in CUDA, where
  Huffman's part is still largely the host's. What the GPU does not take (arithmetic coding, say) DALI may itself decode
  on the host and move up: `decode` has all of that then, and neither ledger nor log says so. What DALI refuses
  altogether is decoded by OpenCV, as in `gpu`, and the log says so once.
* PNG and WebP go to OpenCV: DALI decodes them on the host, too, and the ledger would call that the device's.
* The decoder does not shrink while it decodes.
* A thread has an evaluation context of its own, with one worker thread, which ends with it. On a GPU that is 16 MiB of
  its memory, and two times 8 MiB of pinned memory (DALI's paddings; more for larger images), beside the pixels.
* nvImageCodec writes what it thinks of a damaged image to stderr, past the log, as libjpeg does.

Sources: https://docs.nvidia.com/deeplearning/dali/user-guide/docs/dali_dynamic/index.html, and the docstrings of 2.4.
"""

from __future__ import annotations

from typing import Any

import torch
from nvidia.dali.experimental import dynamic

from services import cuda
from services.preprocess import opencv
from services.preprocess.gpu import DEVICE, Decoder, Decoding, GpuPreprocessor

# Of the operator on the GPU; the one on the CPU does not look at them.
_ON_GPU = {
    "affine": False,  # else every thread's only worker would be tied to the same core
    "hw_decoder_load": 1.0,  # which part of a batch the hardware decodes: one image cannot be divided
    "jpeg_fancy_upsampling": True,  # chroma as libjpeg interpolates it
}


def load(max_pixels: int, *, scaled: bool) -> GpuPreprocessor:
    """On the current CUDA device. Raises `ConfigurationError` where there is none."""
    cuda.require(DEVICE, "--preprocessor opencv")
    return GpuPreprocessor(
        opencv.load(max_pixels, scaled=scaled), max_pixels, Decoding("DALI", decoder), lambda: cuda.open_lane(DEVICE)
    )


def decoder(lane: cuda.Lane) -> Decoder:
    """DALI's, on the lane's device and stream."""
    if lane.device.type == "cuda":
        context = dynamic.EvalContext(num_threads=1, device_id=lane.device.index, cuda_stream=lane.stream)
        device = f"gpu:{lane.device.index}"
    else:
        context, device = dynamic.EvalContext(num_threads=1), "cpu"

    def decode(data: Any) -> Any:
        try:
            # sync_cpu: in this thread, not in one of DALI's; what goes to the stream, the lane waits for.
            with context, dynamic.EvalMode.sync_cpu:
                # As an array: where its memory is pinned, DLPack may name it another device than the CPU.
                encoded = dynamic.as_tensor(data.numpy())
                # It is turned upright with all others (`gpu`), from the same reading of the same tag.
                pixels = dynamic.decoders.image(encoded, device=device, adjust_orientation=False, **_ON_GPU)
                decoded = torch.from_dlpack(pixels)
        except (MemoryError, ValueError) as error:  # what C++ says of memory and of arguments, as Python has it
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return decoded.permute(2, 0, 1)

    return decode
