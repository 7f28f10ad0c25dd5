"""Rare kinds of PNG, GIF, BMP, TIFF, PNM and WebP files, written by hand, and what PIL makes of them.

    python tests/golden/decode_variants.py        (Pillow 13.0)

Writes decode_variants.safetensors. For each NAME: `NAME.file` (the file's bytes) and `NAME.rgb`
([height, width, 3]), PIL's convert("RGB"). Names begin with `near_` where one level of difference is
accepted, and with `refused_` where fewvit reads nothing, which has no `.rgb`. 16-bit grey, which PIL clips
to white, is expected as its upper byte; `NAME.auto` is what data.depth = "auto" makes of 16 bits.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

warnings.simplefilter("ignore")
W, H = 9, 6
rng = np.random.default_rng(5)
y, x = np.mgrid[0:H, 0:W].astype(float)
RGB = np.stack([127 + 110 * np.sin(x / 2) * np.cos(y / 2), 20 + 200 * x / 9, 127 + 100 * np.cos((x + 2 * y) / 4)], 2)
RGB = RGB.round().astype(np.uint8)
PHOTO = Image.fromarray(RGB)
PALETTE = rng.integers(0, 256, (16, 3), dtype=np.uint8)
INDICES = rng.integers(0, 16, (H, W))
tensors = {}


def draw(high, *last):
    return rng.integers(0, high, (H, W, *last))


def add(name, data, expected=None, auto=None):
    tensors[f"{name}.file"] = np.frombuffer(data, np.uint8).copy()
    if expected is None and not name.startswith("refused_"):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for kind, levels in [("rgb", expected), ("auto", auto)]:
        if levels is not None:
            levels = levels[..., None] if levels.ndim == 2 else levels
            tensors[f"{name}.{kind}"] = np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3))).astype(np.uint8)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def packed(row, bits):
    text = "".join(format(int(v), f"0{bits}b") for v in row.ravel())
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8))


# ---- PNG ---------------------------------------------------------------------------------------
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, kind, bits, before=b""):
    rows = b"".join(b"\0" + packed(row, bits) for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


grey = draw(65536)
add("png_grey16", png(grey, 0, 16), expected=grey >> 8, auto=grey >> 8)
for bits in (8, 9, 12):
    grey = draw(1 << bits)
    grey[0, 0] = (1 << bits) - 1
    add(f"png_grey16_of_{bits}_bits", png(grey, 0, 16), expected=grey >> 8, auto=grey >> (bits - 8))
grey = draw(65536)
add("png_grey16_trns", png(grey, 0, 16, chunk(b"tRNS", struct.pack(">H", int(grey[1, 1])))), expected=grey >> 8)
deep = draw(65536, 2)
add("png_grey_alpha16", png(deep, 4, 16))
deep = draw(65536, 3)
add("png_rgb16", png(deep, 2, 16), auto=deep >> 8)
add("png_rgb16_trns", png(deep, 2, 16, chunk(b"tRNS", struct.pack(">HHH", *deep[0, 0]))))
deep = draw(1024, 4)
deep[..., 3] = 65535
add("png_rgba16_of_10_bits", png(deep, 6, 16), auto=deep[..., :3] >> 2)
add("png_rgba16", png(draw(65536, 4), 6, 16))
for bits in (1, 2, 4):
    add(f"png_grey{bits}_trns", png(draw(1 << bits), 0, bits, chunk(b"tRNS", b"\0\1")))
for bits in (1, 2, 4, 8):
    table = chunk(b"PLTE", PALETTE[:1 << bits].tobytes()) + chunk(b"tRNS", bytes([0, 128]))
    add(f"png_palette{bits}_trns", png(INDICES % (1 << bits), 3, bits, table))
add("png_palette_too_short", png(draw(30), 3, 8, chunk(b"PLTE", PALETTE.tobytes())))
add("png_rgb_trns", png(RGB, 2, 8, chunk(b"tRNS", struct.pack(">HHH", *map(int, RGB[2, 3])))))
add("png_gamma", png(RGB, 2, 8, chunk(b"gAMA", struct.pack(">I", 100000))))
add("png_animated", saved(PHOTO, "PNG", save_all=True, append_images=[PHOTO.transpose(0)]))
add("png_animated_default", saved(PHOTO, "PNG", save_all=True, default_image=True, append_images=[PHOTO.transpose(0)]))


# ---- GIF ---------------------------------------------------------------------------------------
def gif(size, frame, pixels, table, transparent=None, local=None, background=0, interlaced=False):
    """A frame x, y, w, h on a canvas; `table` and `local` have 4 colours. Codes of 9 bits, never more."""
    flag, table = (b"\0", b"") if table is None else (b"\x81", table.astype(np.uint8).tobytes())
    out = b"GIF89a" + struct.pack("<HH", *size) + flag + bytes([background, 0]) + table
    if transparent is not None:
        out += b"\x21\xf9\x04" + bytes([1, 0, 0, transparent, 0])
    out += b"\x2c" + struct.pack("<HHHH", *frame)
    out += bytes([(0x81 if local is not None else 0) | (0x40 if interlaced else 0)])
    out += b"" if local is None else local.astype(np.uint8).tobytes()
    codes = [256, *map(int, pixels.ravel()), 257]
    bits = sum(code << 9 * i for i, code in enumerate(codes))
    data = bits.to_bytes(-(-9 * len(codes) // 8), "little")
    return out + bytes([8, len(data)]) + data + b"\0;"


TABLE = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0], [200, 200, 0]])
RAMP = np.arange(4)[:, None].repeat(3, 1)
part, some = ((9, 6), (2, 1, 4, 3)), rng.integers(0, 4, (3, 4))
add("gif_part", gif(*part, some, TABLE))
add("gif_part_background", gif(*part, some, TABLE, background=2))
add("gif_part_transparent", gif(*part, some, TABLE, transparent=3, background=1))
add("gif_transparent", gif((4, 3), (0, 0, 4, 3), some, TABLE, transparent=1))
add("gif_local_table", gif(*part, some, TABLE, local=TABLE[::-1]))
add("gif_only_local_table", gif(*part, some, None, local=TABLE[::-1]))
add("gif_local_ramp", gif(*part, some, TABLE, local=RAMP))
add("gif_ramp", gif(*part, some * 50, RAMP))
add("gif_table_too_short", gif(*part, some * 50, TABLE))
add("gif_transparent_beyond_table", gif(*part, some, TABLE, transparent=77))
add("gif_frame_beyond_canvas", gif((4, 3), (2, 1, 4, 3), some, TABLE))
add("gif_interlaced", gif((9, 6), (2, 0, 4, 6), rng.integers(0, 4, (6, 4)), TABLE, interlaced=True))
add("gif_animated", saved(PHOTO.quantize(8), "GIF", save_all=True, append_images=[PHOTO.transpose(0).quantize(8)]))
add("refused_gif_without_table", gif(*part, some, None))


# ---- BMP ---------------------------------------------------------------------------------------
def bmp(bits, data, compression=0, table=b"", masks=b"", height=H, header=40):
    head = struct.pack("<IiiHHIIiiII", header, W, height, 1, bits, compression, len(data), 2835, 2835, len(table) // 4, 0)
    if header > 40:
        head, masks = head + masks.ljust(header - 40, b"\0"), b""
    at = 14 + len(head) + len(masks) + len(table)
    return b"BM" + struct.pack("<IHHI", at + len(data), 0, 0, at) + head + masks + table + data


def lines(rows):
    return b"".join(row + b"\0" * (-len(row) % 4) for row in rows)


table = b"".join(bytes([*colour, 0]) for colour in PALETTE)
for bits in (1, 4, 8):
    add(f"bmp_palette{bits}", bmp(bits, lines(packed(row % (1 << bits), bits) for row in INDICES), table=table[:4 << bits]))
add("bmp_top_down", bmp(24, lines(row.tobytes() for row in RGB), height=-H))
quads = draw(256, 4).astype(np.uint8).tobytes()
add("bmp_32", bmp(32, quads))
add("bmp_32_masks", bmp(32, quads, 3, masks=struct.pack("<III", 0xff0000, 0xff00, 0xff)))
for header in (108, 124):
    add(f"bmp_32_alpha_{header}", bmp(32, quads, 3, masks=struct.pack("<IIII", 0xff0000, 0xff00, 0xff, 0xff000000), header=header))
pairs = lines(row.tobytes() for row in draw(65536).astype("<u2"))
add("near_bmp_555", bmp(16, pairs))
add("near_bmp_565", bmp(16, pairs, 3, masks=struct.pack("<III", 0xf800, 0x7e0, 0x1f)))
runs = b"".join(bytes([3, int(r[0]), 0, 3, 1, 2, 3, 0, 3, int(r[2]), 0, 0]) for r in INDICES) + b"\0\1"
add("bmp_run_lengths8", bmp(8, runs, 1, table))
add("bmp_run_lengths4", bmp(4, b"".join(bytes([5, 0x3a, 4, int(r[0]) * 17, 0, 0]) for r in INDICES) + b"\0\1", 2, table))


# ---- TIFF --------------------------------------------------------------------------------------
def tiff(bits, photometric, samples, data, order="<", extra=()):
    """One strip; `extra` tags are (tag, type, values)."""
    tags = [(256, 3, [W]), (257, 3, [H]), (258, 3, [bits] * samples), (259, 3, [1]), (262, 3, [photometric])]
    tags += [(273, 4, [0]), (277, 3, [samples]), (278, 3, [H]), (279, 4, [len(data)]), *extra]
    end, entries, outside = 8 + 2 + 12 * len(tags) + 4, b"", b""
    forms = {1: "B", 3: "H", 4: "I"}
    size = sum(n for n in (struct.calcsize(forms[t]) * len(v) for _, t, v in tags) if n > 4)
    for tag, kind, values in sorted(tags):
        values = [end + size] if tag == 273 else values
        content = struct.pack(order + forms[kind] * len(values), *values)
        entries += struct.pack(order + "HHI", tag, kind, len(values))
        if len(content) > 4:
            entries += struct.pack(order + "I", end + len(outside))
            outside += content
        else:
            entries += content.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + outside + data


for order, name in (("<", "little"), (">", "big")):
    grey, deep = draw(4096), draw(65536, 3)
    grey[0, 0] = 4095
    stored = grey.astype(order + "u2").tobytes()
    add(f"tiff_grey16_of_12_bits_{name}", tiff(16, 1, 1, stored, order), expected=grey >> 8, auto=grey >> 4)
    add(f"tiff_rgb16_{name}", tiff(16, 2, 3, deep.astype(order + "u2").tobytes(), order))
grey = draw(65536)
add("tiff_white_is_zero16", tiff(16, 0, 1, grey.astype("<u2").tobytes()), expected=(65535 - grey) >> 8)
add("tiff_white_is_zero", tiff(8, 0, 1, RGB[:, :, 1].tobytes()))
four = draw(200, 4).astype(np.uint8)
four[0, :4, 3] = [0, 1, 255, 254]
for value, name in ((0, "unused"), (1, "multiplied"), (2, "alpha")):
    add(f"tiff_rgba_{name}", tiff(8, 2, 4, four.tobytes(), extra=[(338, 3, [value])]))
add("tiff_one_bit", saved(PHOTO.convert("1"), "TIFF"))
add("tiff_one_bit_group4", saved(PHOTO.convert("1"), "TIFF", compression="group4"))
for packing in ("packbits", "tiff_adobe_deflate", "tiff_lzw"):
    add(f"tiff_{packing}", saved(PHOTO, "TIFF", compression=packing))
add("near_tiff_cmyk", tiff(8, 5, 4, draw(256, 4).astype(np.uint8).tobytes()))
add("near_tiff_jpeg", saved(PHOTO, "TIFF", compression="jpeg"))
add("refused_tiff_palette", saved(PHOTO.quantize(16), "TIFF"))
add("refused_tiff_grey_alpha", saved(PHOTO.convert("LA"), "TIFF"))
add("refused_tiff_float", saved(PHOTO.convert("F"), "TIFF"))
add("refused_tiff_int32", saved(PHOTO.convert("L").convert("I"), "TIFF"))
add("refused_tiff_float_rgb", tiff(32, 2, 3, (RGB / 255).astype("<f4").tobytes(), extra=[(339, 3, [3, 3, 3])]))
add("refused_tiff_signed", tiff(16, 1, 1, draw(65536).astype("<u2").tobytes(), extra=[(339, 3, [2])]))
add("refused_tiff_4_bits", tiff(4, 1, 1, lines([bytes(30)])))
add("refused_tiff_reversed_bits", tiff(8, 1, 1, RGB[:, :, 1].tobytes(), extra=[(266, 3, [2])]))

# ---- PNM and WebP ------------------------------------------------------------------------------
for largest in (65535, 4095):
    grey, deep = draw(largest + 1), draw(largest + 1, 3)
    # PIL clips grey here too.
    scaled = np.floor(grey * 255 / largest + 0.5)
    add(f"pgm_{largest}", b"P5 9 6 %d\n" % largest + grey.astype(">u2").tobytes(), expected=scaled)
    add(f"ppm_{largest}", b"P6 9 6 %d\n" % largest + deep.astype(">u2").tobytes())
add("near_ppm_100", b"P6 9 6 100\n" + draw(101, 3).astype(np.uint8).tobytes())
add("near_pgm_plain", b"P2 9 6 100 " + " ".join(map(str, draw(101).ravel())).encode() + b"\n")
add("pbm", b"P4\n# comment\n9 6\n" + rng.integers(0, 256, 2 * H, dtype=np.uint8).tobytes())
rgba = PHOTO.copy()
rgba.putalpha(Image.fromarray((255 * y / H).astype(np.uint8)))
add("webp_alpha_exact", saved(rgba, "WEBP", lossless=True, exact=True))
add("webp_alpha_lossy", saved(rgba, "WEBP", quality=80))
add("webp_animated", saved(rgba, "WEBP", save_all=True, append_images=[rgba.transpose(0)], lossless=True))
save_file(tensors, Path(__file__).parent / "decode_variants.safetensors")
