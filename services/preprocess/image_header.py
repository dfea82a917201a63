"""What an encoded image says of itself before it is decoded: format, size, and whether its end is there.

A few bytes decide whether decoding may begin: a header that claims 30000 x 30000 pixels costs 2.7 GB to believe, and
decoders fill the missing part of a cut-off JPEG with grey and call it a success.

Sources: ITU-T T.81 annex B (JPEG markers), W3C PNG section 11, the WebP container specification (RFC 9649).
"""

from __future__ import annotations

from typing import NamedTuple

from services.errors import ImageTooLarge, UndecodableImage

Buffer = bytes | memoryview

_PNG = b"\x89PNG\r\n\x1a\n"
_ACCEPTED = "send JPEG, PNG or WebP"


class Header(NamedTuple):
    """`width`, `height`: as stored, before any EXIF rotation, in pixels."""

    format: str
    width: int
    height: int


def read_header(data: Buffer) -> Header:
    """Raises `UndecodableImage` for what is no JPEG, PNG or WebP, or is cut off."""
    view = memoryview(data)
    if len(view) == 0:
        raise UndecodableImage(f"the image is empty; {_ACCEPTED}")
    start = bytes(view[:16])
    if start[:3] == b"\xff\xd8\xff":
        return _jpeg(view)
    if start[:8] == _PNG:
        return _png(view)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(view)
    raise UndecodableImage(f"the {len(view)} bytes are no image that is read here (they begin {start!r}); {_ACCEPTED}")


def check_pixels(header: Header, most: int) -> None:
    """Raises `ImageTooLarge` for an image that claims more than `most` pixels."""
    claimed = header.width * header.height
    if claimed > most:
        raise ImageTooLarge(
            f"the {header.format} claims {header.width} x {header.height} pixels, {claimed / 1e6:.0f} megapixels; "
            f"{most / 1e6:.0f} are accepted (--max-pixels); nothing was decoded"
        )


def orientation(data: Buffer) -> int:
    """The EXIF orientation of a JPEG that has been read before, 1 to 8; 1, upright, where it says none.

    Source: EXIF 2.32, section 4.6 (TIFF 6.0's image file directory), tag 0x0112.
    """
    view = memoryview(data)
    position = 2
    while position + 4 <= len(view) and view[position] == 0xFF and view[position + 1] != 0xDA:
        if view[position + 1] == 0xFF:  # fill bytes
            position += 1
            continue
        end = position + 2 + (view[position + 2] << 8 | view[position + 3])
        if view[position + 1] == 0xE1 and bytes(view[position + 4 : position + 10]) == b"Exif\0\0":
            return _orientation(bytes(view[position + 10 : end]))
        position = end
    return 1


def _orientation(tiff: bytes) -> int:
    if tiff[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if tiff[:2] == b"II" else "big")

    directory = number(4, 4)
    for index in range(number(directory, 2)):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(tiff):
            break
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _jpeg(view: memoryview) -> Header:
    position, size = 2, len(view)
    header: Header | None = None
    while position + 4 <= size:
        if view[position] != 0xFF:
            raise UndecodableImage(f"the JPEG is damaged: no marker at byte {position}")
        marker = view[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        length = view[position + 2] << 8 | view[position + 3]
        # SOF0..SOF15 but for DHT (C4), JPG (C8) and DAC (CC)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if position + 9 > size:
                break
            height = view[position + 5] << 8 | view[position + 6]
            width = view[position + 7] << 8 | view[position + 8]
            if width == 0 or height == 0:
                raise UndecodableImage(f"the JPEG claims {width} x {height} pixels")
            header = Header("jpeg", width, height)
        elif marker == 0xDA:  # start of scan: the entropy-coded data follow
            if header is None:
                raise UndecodableImage("the JPEG is damaged: its scan comes before its frame header")
            if not _has_end(view, position):
                raise UndecodableImage(
                    f"the JPEG is cut off after {size} bytes: its end marker is missing; send it whole"
                )
            return header
        position += 2 + length
    raise UndecodableImage(f"the JPEG is cut off after {size} bytes, before its image data; send it whole")


def _has_end(view: memoryview, scan: int) -> bool:
    """Whether an end-of-image marker follows `scan`; looked for from the end, where it nearly always is."""
    end = len(view)
    while end > scan:
        begin = max(scan, end - 4096)
        # One byte of overlap: the marker may straddle two windows.
        if bytes(view[begin : end + 1]).rfind(b"\xff\xd9") >= 0:
            return True
        end = begin
    return False


def _png(view: memoryview) -> Header:
    if len(view) < 33 or bytes(view[12:16]) != b"IHDR":
        raise UndecodableImage(f"the PNG is cut off after {len(view)} bytes, within its header; send it whole")
    width = int.from_bytes(view[16:20], "big")
    height = int.from_bytes(view[20:24], "big")
    if width == 0 or height == 0:
        raise UndecodableImage(f"the PNG claims {width} x {height} pixels")
    return Header("png", width, height)


def check_end(data: Buffer, header: Header) -> None:
    """Raises `UndecodableImage` for a PNG or WebP without its end (a JPEG's was checked with its header)."""
    view = memoryview(data)
    if header.format == "png" and b"IEND" not in bytes(view[-4096:]):
        raise UndecodableImage(f"the PNG is cut off after {len(view)} bytes: its end chunk is missing; send it whole")
    if header.format == "webp":
        claimed = int.from_bytes(view[4:8], "little") + 8
        if claimed > len(view) + 1:  # writers differ about a final padding byte
            raise UndecodableImage(f"the WebP is cut off: {len(view)} of {claimed} bytes; send it whole")


def _webp(view: memoryview) -> Header:
    kind, body = bytes(view[12:16]), bytes(view[20:30])
    if len(view) < 30:
        raise UndecodableImage(f"the WebP is cut off after {len(view)} bytes, within its header; send it whole")
    if kind == b"VP8X":
        return Header("webp", int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
    if kind == b"VP8 ":
        return Header(
            "webp", int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        )
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    raise UndecodableImage(f"the WebP has an unknown first chunk {kind!r}")
