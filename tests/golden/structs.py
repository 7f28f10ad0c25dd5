"""Structs and cells as ImageNet's meta.mat and Stanford Cars have them, plain and compressed.

    python tests/golden/structs.py        (scipy 1.17)

Writes structs_plain.mat and structs_packed.mat.
"""

import numpy as np
import scipy.io

fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
synsets = np.zeros((1, 3), dtype=fields)
none = np.zeros((0, 0), dtype=np.uint8)
for i, row in enumerate([
    (np.uint8(2), "n01440764", "tench, Tinca tinca", np.uint8(0), none),
    (np.uint8(1), "n07920052", "caf\u00e9", np.uint8(0), none),
    (np.uint16(1860), "n00001740", "", np.uint8(2), np.array([[2, 1]], dtype=np.uint8)),
]):
    synsets[0, i] = row
names = np.empty((1, 2), dtype=object)
names[0, :] = ["Ram C/V", "Audi 80"]
arrays = {"synsets": synsets, "class_names": names, "complex": np.array([[1 + 2j]])}
scipy.io.savemat("structs_plain.mat", arrays)
scipy.io.savemat("structs_packed.mat", arrays, do_compression=True)
