"""Digits: scikit-learn's handwritten digits, 1797 real images of 8 x 8 that come with the package.

Source: the test set of "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, as
`sklearn.datasets.load_digits` ships it. Pixels are integers 0 to 16.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.shared_data import providable

if TYPE_CHECKING:
    from streams.split import LabelledData

# sha256 of the arrays as uint8, in C order.
ARRAYS = {
    "images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "targets": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
}


@providable
def read_digits() -> LabelledData:
    """Reads and verifies the data set: images `[1797, 1, 8, 8]`; there is no official test set.

    Raises:
        StreamDataError: the arrays are not the known ones.
    """
    from sklearn.datasets import load_digits  # a second or two

    from streams.split import LabelledData

    digits = load_digits()
    arrays = {"images": digits.images[:, None].astype("uint8"), "targets": digits.target.astype("uint8")}
    for name, expected in ARRAYS.items():
        found = hashlib.sha256(arrays[name].tobytes()).hexdigest()
        if found != expected:
            raise StreamDataError(f"scikit-learn's digits: {name} should have sha256 {expected}, found {found}")
    return LabelledData(
        dataset="digits",
        source="scikit-learn",
        files={name: {"sha256": sha256} for name, sha256 in ARRAYS.items()},
        inputs=arrays["images"],
        targets=arrays["targets"],
        divisor=16.0,
        class_names=tuple(map(str, digits.target_names)),
    )
