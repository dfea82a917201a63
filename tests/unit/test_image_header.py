"""What an image says of itself, before it is believed."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.errors import UndecodableImage
from services.preprocess.image_header import check_end, orientation, read_header
from tests.photographs import encode, jpeg, pixels


def png_claiming(width: int, height: int) -> bytes:
    """A well-formed PNG whose header claims a size and whose data are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"progressive": True}])
def test_format_and_size_are_read(format_: str, options: dict[str, bool]) -> None:
    data = encode(pixels("chelsea"), format_, **options)
    header = read_header(data)
    assert header == (format_.lower(), 451, 300)
    check_end(data, header)
    assert read_header(memoryview(data)) == header


def test_an_extended_webp_is_read() -> None:
    data = encode(Image.fromarray(pixels("chelsea")).convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0")
    assert data[12:16] == b"VP8X"
    assert read_header(data)[1:] == (451, 300)


def test_a_thumbnail_is_not_taken_for_the_image() -> None:
    # Given a JPEG whose metadata hold another, whole JPEG, thumbnail-like
    thumbnail = encode(pixels("chelsea")[:40, :60])
    data = encode(pixels("chelsea"))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + segment + data[2:]
    # Then the size is the photograph's, and the thumbnail's end does not pass for the photograph's
    assert read_header(whole)[1:] == (451, 300)
    with pytest.raises(UndecodableImage, match="cut off"):
        read_header(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"Dear server, here is my cat", "no image that is read here"),
        (b"GIF89a" + b"\0" * 30, "no image that is read here"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\xff\xd8\xff\xe0\x00\x10", "cut off"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cut off"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "cut off"),
        (b"RIFF\x00\x00\x00\x00WEBPXXXX" + b"\0" * 30, "unknown first chunk"),
        (png_claiming(0, 5), "claims 0 x 5"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, says: str) -> None:
    with pytest.raises(UndecodableImage) as raised:
        read_header(data)
    assert says in raised.value.message


def test_a_claim_is_read_without_believing_it() -> None:
    assert read_header(png_claiming(30_000, 30_000)) == ("png", 30_000, 30_000)


@settings(max_examples=60)
@given(st.floats(0.0, 0.999), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.booleans())
def test_a_cut_off_image_is_never_whole(where: float, format_: str, progressive: bool) -> None:
    data = (
        encode(pixels("chelsea"), format_, progressive=progressive)
        if format_ == "JPEG"
        else encode(pixels("chelsea"), format_)
    )
    cut = data[: int(where * (len(data) - 4))]
    with pytest.raises(UndecodableImage):
        check_end(cut, read_header(cut))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]))
def test_noise_is_refused_or_read_never_worse(noise: bytes, start: bytes) -> None:
    try:
        header = read_header(start + noise)
    except UndecodableImage:
        return
    assert header.width > 0
    assert header.height > 0


def test_bytes_after_the_end_do_not_matter() -> None:
    assert read_header(jpeg("chelsea") + b"\0" * 10_000).format == "jpeg"


def test_the_header_of_a_large_file_is_cheap() -> None:
    # Given an image of some megabytes, as a view
    data = encode(Image.effect_noise((2000, 2000), 60).convert("RGB"), quality=98)
    reader = io.BytesIO(data)
    # Then nothing of it is copied but what is looked at
    assert read_header(reader.getbuffer()).width == 2000


@pytest.mark.parametrize("behind", [0, 1, 4093, 4094, 4095, 4096, 9000])
def test_an_end_marker_is_found_wherever_it_lies(behind: int) -> None:
    # Given bytes behind the end, as cameras append them; the search goes backwards in windows of 4096
    assert read_header(jpeg("coffee") + b"\0" * behind).format == "jpeg"


@pytest.mark.parametrize("value", range(1, 9))
def test_an_exif_orientation_is_read(value: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker, so that the tag is not the first"
    exif[0x0112] = value
    assert orientation(encode(pixels("chelsea"), exif=exif)) == value
    assert orientation(memoryview(encode(pixels("chelsea"), exif=exif, progressive=True))) == value
    # And in the other order of bytes
    tiff = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0" + bytes([value]) + b"\0\0\0\0\0\0"
    assert orientation(encode(pixels("chelsea"), exif=b"Exif\0\0" + tiff)) == value


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0XX*\0\0\0\x08",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x09\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x00\0\0",
    ],
)
def test_an_orientation_that_is_none_is_upright(exif: bytes) -> None:
    assert orientation(encode(pixels("chelsea"), exif=exif)) == 1


@given(st.binary(max_size=200))
def test_noise_has_an_orientation_and_no_end(noise: bytes) -> None:
    assert 1 <= orientation(b"\xff\xd8\xff\xe1" + noise) <= 8
    assert 1 <= orientation(b"\xff\xd8\xff\xe1\xff\xf0Exif\0\0II*\0\x08\0\0\0" + noise) <= 8
