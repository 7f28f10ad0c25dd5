"""Writes the annotations of a tiny Stanford Cars, with the fields of the genuine files (scipy).

    python tests/golden/cars.py        (scipy 1.17)

Like there, numbers are in the narrowest type and elements are compressed.
"""

import numpy as np
import scipy.io

BOX = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"]


def narrow(number):
    return np.array([[number]], dtype=np.uint8 if number < 256 else np.uint16)


def struct(fields, rows):
    array = np.empty((1, len(rows)), dtype=[(field, "O") for field in fields])
    for i, row in enumerate(rows):
        array[0, i] = tuple(value if isinstance(value, str) else narrow(value) for value in row)
    return array


def save(name, **arrays):
    scipy.io.savemat(name, arrays, do_compression=True)


names = np.empty((1, 2), dtype=object)
names[0, :] = ["Audi 80", "Ram C/V Cargo Van Minivan 2012"]
save("cars_meta.mat", class_names=names)
fields = BOX + ["class", "fname"]
save("cars_train_annos.mat", annotations=struct(fields, [
    (39, 116, 569, 375, 1, "00001.jpg"),
    (36, 116, 868, 587, 2, "00002.jpg"),
    (85, 109, 601, 381, 2, "00003.jpg"),
]))
save("cars_test_annos_withlabels.mat", annotations=struct(fields, [
    (30, 52, 246, 147, 2, "00001.jpg"),
    (100, 19, 576, 203, 1, "00002.jpg"),
]))
save("cars_annos.mat", class_names=names, annotations=struct(["relative_im_path"] + BOX + ["class", "test"], [
    (f"car_ims/00000{i}.jpg", 112, 7, 853, 717, label, test)
    for i, label, test in [(1, 1, 1), (2, 1, 0), (3, 2, 0), (4, 2, 1), (5, 2, 0)]
]))
