import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nwc.coding import rice
from nwc.errors import BitstreamError

# Blocks of 16 choose their parameter from their values: mix zeros, small and huge ones.
VALUES = st.lists(
    st.one_of(st.just(0), st.integers(0, 40), st.integers(0, rice.MAX_VALUE - 1)), max_size=70
)


@settings(deadline=None)
@given(VALUES, st.binary(max_size=3))
def test_values_come_back_and_what_follows_is_not_read(values, rest):
    data = rice.encode(np.array(values, dtype=np.int64))
    found, used = rice.decode(data + rest, len(values))
    assert found.tolist() == values
    assert used == len(data)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_decode_or_raise(data, count):
    try:
        values, used = rice.decode(data, count)
    except BitstreamError:
        return
    assert len(values) == count
    assert used <= len(data)
    assert all(0 <= v < rice.MAX_VALUE for v in values)


@settings(deadline=None)
@given(VALUES.filter(len), st.data())
def test_a_shortened_code_raises(values, data):
    code = rice.encode(np.array(values, dtype=np.int64))
    short = code[: data.draw(st.integers(0, len(code) - 1))]
    with pytest.raises(BitstreamError, match="Rice code"):
        rice.decode(short, len(values))


@given(st.lists(st.integers(-(2**40), 2**40)))
def test_zigzag_has_an_inverse_and_is_never_negative(values):
    folded = rice.zigzag(np.array(values, dtype=np.int64))
    assert (folded >= 0).all()
    assert rice.unzigzag(folded).tolist() == values


@pytest.mark.parametrize("value", [-1, rice.MAX_VALUE])
def test_encode_refuses_what_it_cannot_hold(value):
    with pytest.raises(ValueError, match="Rice code holds"):
        rice.encode(np.array([value]))


def test_zero_blocks_cost_half_a_byte():
    assert len(rice.encode(np.zeros(16 * 10, dtype=np.int64))) == 5


def test_layout_is_parameters_remainders_unary():
    # 5 = 2 << 1 | 1 and fifteen of 2 = 1 << 1 | 0: parameter 1, then the planes.
    data = rice.encode(np.array([5] + [2] * 15))
    assert data[0] == 0x10
    assert data[1:3] == bytes([0b10000000, 0])
    assert data[3:] == bytes([0b00101010, 0b10101010, 0b10101010, 0b10101010, 0b10000000])


def test_a_quotient_above_the_limit_raises():
    # Parameter 0 and 2^20 zero bits before the first one.
    data = b"\x00" + bytes(rice.MAX_VALUE // 8) + b"\xff\xff"
    with pytest.raises(BitstreamError, match="above 1048575"):
        rice.decode(data, 1)


def test_a_value_above_the_limit_raises():
    # Parameter 14 and quotient 64 make 64 << 14 = 2^20.
    data = b"\xe0" + b"\x00\x00" + bytes(8) + b"\x80"
    with pytest.raises(BitstreamError, match="above 1048575"):
        rice.decode(data, 1)
