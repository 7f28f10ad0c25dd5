"""Makes augment_ops.safetensors and augment_resize.safetensors.

The input is drawn here (gradients, primaries, greys, noise), so no photograph enters the repository.
Made with PIL 13.0, torchvision 0.29, timm 1.0.31, numpy:  python tests/golden/augment.py [PHOTO OUT_DIR]
With a photo, its 64 x 48 centre is the input instead, for checks by hand.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from safetensors.numpy import save_file
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

GREY = (128, 128, 128)


def synthetic(width=32, height=24):
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    pixels = np.stack([20 + 200 * x / width, 230 - 210 * y / height, 60 + 3 * (x + y)], -1)
    pixels += rng.normal(0, 12, pixels.shape)
    pixels[4:10, 3:9] = (255, 0, 0)
    pixels[8:14, 20:28] = (10, 200, 190)
    pixels[16:20, 4:16] = (77, 77, 77)
    pixels[:, -3:] = rng.integers(0, 256, (height, 3, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shear_x(im, v):
    return im.transform(im.size, Image.AFFINE, (1, v, 0, 0, 1, 0), Image.BICUBIC, fillcolor=GREY)


def shear_y(im, v):
    return im.transform(im.size, Image.AFFINE, (1, 0, 0, v, 1, 0), Image.BICUBIC, fillcolor=GREY)


def translate(im, dx, dy):
    return im.transform(im.size, Image.AFFINE, (1, 0, dx, 0, 1, dy), fillcolor=GREY)


def rotate(im, degrees):
    turned = im.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", im.size, (128,) * 4), turned).convert("RGB")


def cutout(im, x, y, w, h):
    im = im.copy()
    ImageDraw.Draw(im).rectangle((x, y, x + w - 1, y + h - 1), (125, 122, 113))
    return im


OPS = {
    "horizontal_flip": F.hflip,
    "brightness_0.35": lambda im: F.adjust_brightness(im, 0.35),
    "brightness_1.7": lambda im: F.adjust_brightness(im, 1.7),
    "contrast_0.35": lambda im: F.adjust_contrast(im, 0.35),
    "contrast_1.7": lambda im: F.adjust_contrast(im, 1.7),
    "saturation_0.35": lambda im: F.adjust_saturation(im, 0.35),
    "saturation_1.7": lambda im: F.adjust_saturation(im, 1.7),
    "hue_0.17": lambda im: F.adjust_hue(im, 0.17),
    "hue_-0.2": lambda im: F.adjust_hue(im, -0.2),
    "grayscale": lambda im: F.rgb_to_grayscale(im, 3),
    "gaussian_blur_0.1": lambda im: im.filter(ImageFilter.GaussianBlur(0.1)),
    "gaussian_blur_0.9": lambda im: im.filter(ImageFilter.GaussianBlur(0.9)),
    "gaussian_blur_1.9": lambda im: im.filter(ImageFilter.GaussianBlur(1.9)),
    "gaussian_blur_6": lambda im: im.filter(ImageFilter.GaussianBlur(6)),
    "sharpness_0.3": lambda im: ImageEnhance.Sharpness(im).enhance(0.3),
    "sharpness_1.8": lambda im: ImageEnhance.Sharpness(im).enhance(1.8),
    "invert": ImageOps.invert,
    "auto_contrast": lambda im: ImageOps.autocontrast(im.point(lambda v: 40 + v // 2)),
    "equalize": ImageOps.equalize,
    "posterize_5": lambda im: ImageOps.posterize(im, 5),
    "solarize_113.8": lambda im: ImageOps.solarize(im, 256 * (1 - 5 / 9)),
    "cutout": lambda im: cutout(im, 26, 18, 11, 4),
    "shear_x_0.2": lambda im: shear_x(im, 0.2),
    "shear_x_-0.3": lambda im: shear_x(im, -0.3),
    "shear_y_0.2": lambda im: shear_y(im, 0.2),
    "shear_y_-0.3": lambda im: shear_y(im, -0.3),
    "translate_x_6.3": lambda im: translate(im, 6.3, 0),
    "translate_x_-4.8": lambda im: translate(im, -4.8, 0),
    "translate_y_5.5": lambda im: translate(im, 0, 5.5),
    "rotate_10": lambda im: rotate(im, 10),
    "rotate_30": lambda im: rotate(im, 30),
}

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


SIZES = [96, 112, 144, 160, 176, 192, 208, 224, 256, 288, 384, 448]
SHAPES = ["331x247", "211x333", "300x100", "70x280", "61x45"]
TALL = {"bilinear": [(0, 0, 20, 90, 10, 10), (0, 0, 20, 90, 16, 16), (2, 3, 12, 80, 24, 24), (1, 5, 15, 30, 10, 10)]}
TALL["bicubic"] = TALL["bilinear"]
TALL["lanczos"] = [(0, 0, 20, 90, w, h) for w, h in [(10, 10), (16, 16), (15, 80), (10, 45)]]


def pattern(size):
    """The image of a size such as 30x20 that the tests draw too."""
    width, height = map(int, size.split("x"))
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return Image.fromarray(((31 * x * x + 57 * y * y + 13 * x * y + 101 * c + 7 * x) % 256).astype(np.uint8))


def resized(im):
    """Crops x, y, w, h to out_w, out_h of `im` and of a tall image."""
    for name, mode in MODES.items():
        for x, y, w, h, ow, oh in [(0, 0, 32, 24, 12, 12), (5, 3, 20, 17, 13, 13), (7, 6, 9, 7, 16, 16), (3, 2, 12, 20, 12, 9)]:
            yield f"crop_{name}_{x}_{y}_{w}_{h}_{ow}_{oh}", F.resized_crop(im, y, x, h, w, [oh, ow], mode)
    for name, crops in TALL.items():
        for x, y, w, h, ow, oh in crops:
            cut = pattern("20x90").crop((x, y, x + w, y + h))
            yield f"crop_{name}_tall_{x}_{y}_{w}_{h}_{ow}_{oh}", cut.resize((ow, oh), Image.Resampling[name.upper()])


def views():
    """timm's evaluation views; of each every so many pixels."""
    for size in SIZES:
        for mode in MODES if size == 144 else ["bicubic"]:
            view = create_transform((3, size, size), is_training=False, interpolation=mode, crop_pct=0.875)
            for shape in SHAPES:
                step = -(-size // 12)
                out = pattern(shape)
                for transform in view.transforms[:2]:
                    out = transform(out)
                yield f"eval_{mode}_{shape}_{size}", np.ascontiguousarray(np.array(out)[::step, ::step])


def main():
    im, out = synthetic(), Path(__file__).parent
    if len(sys.argv) > 1:
        im, out = F.center_crop(Image.open(sys.argv[1]).convert("RGB"), [48, 64]), Path(sys.argv[2])
    ops = {"image": im} | {name: op(im) for name, op in OPS.items()}
    resizes = {"image": im} | dict(resized(im)) | dict(views())
    for name, tensors in [("ops", ops), ("resize", resizes)]:
        save_file({k: np.array(v) for k, v in tensors.items()}, out / f"augment_{name}.safetensors")


main()
