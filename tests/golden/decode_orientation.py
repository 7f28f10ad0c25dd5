"""Tiny files that say how they are to be turned, in all manners, and the orientation that PIL applies.

    python tests/golden/decode_orientation.py        (Pillow 13.0)

Writes decode_orientation.txt: a line `NAME ORIENTATION BYTES`, the file in hexadecimal, for each.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
PICTURE = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10)
# Above 8 none; PIL raises on a block that is no TIFF structure, which counts as none.
TURNS = [None, None, *(Image.Transpose[name] for name in (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"))]
text = []


def add(name, data):
    image = Image.open(io.BytesIO(data))
    plain = Image.open(io.BytesIO(data))
    try:
        value = image.getexif().get(0x0112, 1)
        upright = ImageOps.exif_transpose(image)
    except SyntaxError:
        value, upright = 1, image
    turn = value if value in range(2, 9) else 1
    if image.format != "TIFF":
        same = plain if turn == 1 else plain.transpose(TURNS[int(turn)])
        assert np.array_equal(np.asarray(upright), np.asarray(same)), name
    else:
        # PIL turns a TIFF as it loads it.
        turn = next(i for i in range(1, 9) if np.array_equal(
            np.asarray(upright), np.asarray(PICTURE if i == 1 else PICTURE.transpose(TURNS[i]))))
    text.append(f"{name} {int(turn)} {data.hex()}\n")


def saved(form, **options):
    buffer = io.BytesIO()
    PICTURE.save(buffer, form, **options)
    return buffer.getvalue()


def block(entries, order="<", magic=None, after=b"", count=None, first=8):
    """An EXIF block; entries are (tag, type, count, four bytes)."""
    magic = magic or (b"II*\0" if order == "<" else b"MM\0*")
    entries = [struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries]
    count = len(entries) if count is None else count
    return magic + struct.pack(order + "I", first) + bytes(first - 8) + struct.pack(order + "H", count) + b"".join(entries) + bytes(4) + after


def orientation(kind, content, count=1, order="<"):
    """A block with this one entry, its content outside if it is longer than four bytes."""
    if len(content) <= 4:
        return block([(0x0112, kind, count, content.ljust(4, b"\0"))], order)
    return block([(0x0112, kind, count, struct.pack(order + "I", 26))], order, after=content)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = saved("PNG")


def png(*chunks):
    return PNG[:33] + b"".join(chunk(*c) for c in chunks) + PNG[33:]


def jpeg(*segments):
    data = saved("JPEG", quality=20)
    parts = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return data[:2] + parts + data[2:]


SIX = struct.pack("<H", 6)
good, three = orientation(3, SIX), orientation(3, struct.pack("<H", 3))

blocks = {}
for order, name in (("<", "little"), (">", "big")):
    forms = {"short": (3, "H"), "long": (4, "I"), "sshort": (8, "h"), "slong": (9, "i"), "byte": (1, "B"), "sbyte": (6, "b"),
             "undefined": (7, "B"), "ifd": (13, "I"), "float": (11, "f"), "double": (12, "d"), "long8": (16, "Q"), "unknown": (99, "I")}
    for kind, (number, form) in forms.items():
        blocks[f"{kind}_{name}"] = orientation(number, struct.pack(order + form, 6), order=order)
    for kind, number, form in (("rational", 5, "II"), ("srational", 10, "ii")):
        for a, b in ((6, 1), (12, 2), (13, 2), (6, 0)) + (((-6, -1),) if kind == "srational" else ()):
            blocks[f"{kind}_{a}_{b}_{name}"] = orientation(number, struct.pack(order + form, a, b), order=order)
    blocks[f"two_{name}"] = orientation(3, struct.pack(order + "HH", 6, 3), 2, order)
    blocks[f"three_{name}"] = orientation(3, struct.pack(order + "HHH", 6, 3, 8), 3, order)
    blocks[f"no_value_{name}"] = orientation(3, struct.pack(order + "H", 6), 0, order)
for value in (*range(10), 255, 65535):
    blocks[f"value_{value}"] = orientation(3, struct.pack("<H", value))
blocks["negative"] = orientation(9, struct.pack("<i", -6))
blocks["six_in_the_lower_half"] = orientation(4, struct.pack("<I", 65542))
blocks["text"] = orientation(2, b"6\0", 2)
entry = (0x0112, 3, 1, SIX + b"\0\0")
blocks["twice"] = block([entry, (0x0112, 3, 1, b"\3\0\0\0")])
blocks["empty_then_good"] = block([(0x0112, 3, 0, bytes(4)), entry])
blocks["unknown_then_good"] = block([(0x0112, 77, 1, b"\3\0\0\0"), entry])
blocks["after_an_entry_outside"] = block([(0x010f, 2, 9, struct.pack("<I", 9999)), entry])
blocks["before_an_entry_outside"] = block([entry, (0x010f, 2, 9, struct.pack("<I", 9999))])
blocks["after_an_entry_larger_than_the_block"] = block([(0x010f, 2, 99999, struct.pack("<I", 8)), entry])
blocks["count_too_large"] = block([(0x010f, 3, 1, b"\1\0\0\0"), entry], count=50)
blocks["swapped_magic"] = block([entry], magic=b"II\0*")
blocks["wrong_magic"] = block([entry], magic=b"IIxx")
blocks["directory_further_on"] = block([entry], first=30)
blocks["cut_in_the_entry"] = good[:-6]
blocks["cut_behind_the_entry"] = good[:-4]
for name, data in blocks.items():
    add(f"png_{name}", png((b"eXIf", data)))

HEAD, SPACE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
attribute, element = b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>8</tiff:Orientation>"
packets = {
    "attribute": attribute, "element": element, "single_quotes": b"<x tiff:Orientation='6'/>", "spaced": b'<x tiff:Orientation = "6"/>',
    "second_is_good": b'tiff:Orientation="x" ' + element, "ten": b'tiff:Orientation="10"', "zero": b'tiff:Orientation="0"',
    "first_counts": element + attribute,
}
for name, packet in packets.items():
    add(f"png_xmp_{name}", png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)))
    add(f"webp_xmp_{name}", saved("WEBP", lossless=True, xmp=packet))
add("png_xmp_packed", png((b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(attribute))))
add("png_xmp_packed_international", png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(attribute))))
add("png_xmp_text", png((b"tEXt", b"XML:com.adobe.xmp\0" + attribute)))
add("png_exif_behind_the_picture", PNG[:-12] + chunk(b"eXIf", three) + PNG[-12:])
add("png_two_exifs", png((b"eXIf", three), (b"eXIf", good)))
profile = lambda data: b"\nexif\n%8d\n" % len(data) + data.hex().encode() + b"\n"
add("png_raw_profile", png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(HEAD + three)))))
add("png_raw_profile_and_exif", png((b"tEXt", b"Raw profile type exif\0" + profile(three)), (b"eXIf", good)))
add("png_exif_as_text", png((b"tEXt", b"exif\0" + b"II*\0" + b"\1" * 20)))
add("jpeg_exif", jpeg(HEAD + orientation(4, struct.pack("<I", 6))))
add("jpeg_exif_big", jpeg(HEAD + orientation(9, struct.pack(">i", 8), order=">")))
add("jpeg_exif_twice_headed", jpeg(HEAD + HEAD + good))
add("jpeg_two_exifs", jpeg(HEAD + three, HEAD + good))
add("jpeg_exif_in_two_parts", jpeg(HEAD + good[:12], HEAD + good[12:]))
add("jpeg_exif_without_orientation_and_xmp", jpeg(HEAD + block([(0x010f, 3, 1, b"\1\0\0\0")]), SPACE + attribute))
add("jpeg_exif_over_xmp", jpeg(SPACE + attribute, HEAD + three))
add("jpeg_zero_over_xmp", jpeg(HEAD + orientation(3, bytes(2)), SPACE + attribute))
add("jpeg_byte_over_xmp", jpeg(HEAD + orientation(1, b"\6"), SPACE + attribute))
add("jpeg_xmp", jpeg(SPACE + attribute))
add("jpeg_two_packets", jpeg(SPACE + attribute, SPACE + element))
add("jpeg_xmp_of_another_namespace", jpeg(b"http://ns.adobe.com/xmp/extension/\0" + attribute))
webp = saved("WEBP", lossless=True, exif=good, xmp=element)
flags = webp.index(b"VP8X") + 8
add("webp_exif", webp)
add("webp_exif_unannounced", webp[:flags] + bytes([webp[flags] & ~8]) + webp[flags + 1:])
add("webp_nothing_announced", webp[:flags] + bytes([webp[flags] & ~12]) + webp[flags + 1:])
add("webp_exif_headed", saved("WEBP", lossless=True, exif=HEAD + three))
for tag, name in ((b"\3\0\1\0\0\0\6\0\0\0", "short"), (b"\4\0\1\0\0\0\3\0\0\0", "long")):
    data = saved("TIFF", tiffinfo={274: 1})
    at = data.rindex(struct.pack("<HH", 274, 3))
    add(f"tiff_{name}", data[:at + 2] + tag + data[at + 12:])
add("tiff_xmp", saved("TIFF", tiffinfo={700: attribute}))
Path(__file__).with_suffix(".txt").write_text("".join(text))
