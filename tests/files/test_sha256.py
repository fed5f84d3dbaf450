import hashlib

import pytest

from capax.files.sha256 import sha256


@pytest.mark.parametrize("n_bytes", [0, 1, 55, 56, 63, 64, 65, 1000])
def test_it_is_the_function_of_hashlib(n_bytes: int) -> None:
    data = bytes(i * 7 % 256 for i in range(n_bytes))
    assert sha256(data).digest() == hashlib.sha256(data).digest()
    in_two = sha256(data[:20])
    in_two.update(data[20:])
    assert in_two.hexdigest() == hashlib.sha256(data).hexdigest()
