"""Small generated images in many formats, and what PIL makes of them; also two MATLAB files.

    python tests/golden/decode_images.py

Writes decode_images.safetensors: for each NAME, the tensors `NAME.file` (the file's bytes) and
`NAME.rgb` ([height, width, 3], PIL's convert("RGB") after exif_transpose).
"""

import io
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image, ImageOps
from safetensors.numpy import save_file

HERE = Path(__file__).parent
W, H = 37, 22

y, x = np.mgrid[0:H, 0:W].astype(np.float64)
RGB = np.stack([
    127 + 110 * np.sin(x / 7) * np.cos(y / 5),
    20 + 200 * x / W,
    127 + 100 * np.cos((x + 2 * y) / 9),
], axis=2).round().astype(np.uint8)
PHOTO = Image.fromarray(RGB)
ALPHA = Image.fromarray((255 * y / H).astype(np.uint8))
tensors = {}


def add(name, image, form, patch=lambda b: b, expected=None, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    data = patch(buffer.getvalue())
    if expected is None:
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    tensors[f"{name}.file"] = np.frombuffer(data, np.uint8).copy()
    tensors[f"{name}.rgb"] = np.ascontiguousarray(expected)


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def adobe_transform(value):
    """Rewrites the colour transform byte of the Adobe segment: the same planes, read as YCCK."""
    def patch(data):
        at = data.index(b"Adobe") + 11
        return data[:at] + bytes([value]) + data[at + 1:]
    return patch


add("baseline_420_jpg", PHOTO, "JPEG", quality=85)
add("baseline_422_jpg", PHOTO, "JPEG", quality=85, subsampling=1)
add("baseline_444_jpg", PHOTO, "JPEG", quality=85, subsampling=0)
add("progressive_420_jpg", PHOTO, "JPEG", quality=85, progressive=True)
add("grey_jpg", PHOTO.convert("L"), "JPEG", quality=85)
cmyk = PHOTO.convert("CMYK")
black = Image.fromarray((40 + 60 * y / H).astype(np.uint8))
cmyk = Image.merge("CMYK", [*cmyk.split()[:3], black])
add("cmyk_jpg", cmyk, "JPEG", quality=90)
add("ycck_jpg", cmyk, "JPEG", quality=90, patch=adobe_transform(2))
add("one_pixel_jpg", PHOTO.crop((3, 3, 4, 4)), "JPEG")
for value in range(1, 9):
    add(f"orientation_{value}_jpg", PHOTO.crop((0, 0, 24, 13)), "JPEG", quality=90, exif=orientation(value))
add("rgb_png", PHOTO, "PNG")
add("rgb_interlaced_orientation_6_png", PHOTO.crop((0, 0, 20, 11)), "PNG", exif=orientation(6))
rgba = PHOTO.copy()
rgba.putalpha(ALPHA)
add("rgba_png", rgba, "PNG")
grey_alpha = PHOTO.convert("L").convert("LA")
grey_alpha.putalpha(ALPHA)
add("grey_alpha_png", grey_alpha, "PNG")
palette = PHOTO.quantize(32)
add("palette_png", palette, "PNG")
add("palette_transparent_png", palette, "PNG", transparency=3)
add("one_bit_png", PHOTO.convert("1"), "PNG")
# PIL clips 16-bit grey to 255; the meaning of the numbers is value / 65535.
deep = (RGB[:, :, 1].astype(np.uint16) * 257)
add("grey_16_png", Image.fromarray(deep), "PNG", expected=np.repeat(RGB[:, :, 1:2], 3, axis=2))
add("one_pixel_png", PHOTO.crop((3, 3, 4, 4)), "PNG")
add("palette_gif", palette, "GIF")
add("rgb_bmp", PHOTO, "BMP")
add("rgb_lzw_tiff", PHOTO, "TIFF", compression="tiff_lzw")
add("rgb_lossless_webp", PHOTO, "WEBP", lossless=True)
add("rgb_lossy_webp", PHOTO, "WEBP", quality=85)
add("rgb_ppm", PHOTO, "PPM")
save_file(tensors, HERE / "decode_images.safetensors")

arrays = {"few": np.array([[7, 200]], np.uint8), "a": np.array([[1.5, -2.0], [3.0, 4.0]]), "s": "text"}
for name, compressed in (("plain", False), ("packed", True)):
    path = HERE / f"decode_{name}.mat"
    scipy.io.savemat(path, arrays, do_compression=compressed)
    # The heading of 116 bytes holds the time; the same bytes every time are easier to review.
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])
