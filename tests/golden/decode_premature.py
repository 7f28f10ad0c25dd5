"""A JPEG whose data ends before the picture does, though its end marker is there, as in Oxford-IIIT Pets.

    python tests/golden/decode_premature.py        (Pillow 13.0)

Writes decode_premature.txt: the file and PIL's pixels (32 x 24, RGB), each a line in hexadecimal.
"""

import io

import numpy as np
from PIL import Image

y, x = np.mgrid[:24, :32]
pixels = np.stack([8 * x, 10 * y, 4 * (x + y)], axis=2).astype(np.uint8)
file = io.BytesIO()
Image.fromarray(pixels).save(file, "JPEG", quality=90)
whole = file.getvalue()
assert whole.endswith(b"\xff\xd9")
cut = whole[: len(whole) - 80].rstrip(b"\xff") + b"\xff\xd9"
read = np.asarray(Image.open(io.BytesIO(cut)).convert("RGB"))
assert (read != np.asarray(Image.open(io.BytesIO(whole)))).any()
with open("decode_premature.txt", "w") as out:
    out.write(cut.hex() + "\n" + read.tobytes().hex() + "\n")
