import numpy as np
import pytest

from nwc.errors import ConfigError
from nwc.quantizers import qtip


def test_1mad_by_hand():
    code = qtip.one_mad()[0]
    for state in (0, 1, 4242, 65535):
        mixed = (34038481 * state + 76625530) % 2**32
        value = (sum(mixed.to_bytes(4, "little")) - 510) / 147.800537
        assert code[state] == pytest.approx(value, abs=1e-6)


def test_3inst_by_hand():
    code = qtip.three_inst()[0]
    for state in (0, 1, 4242, 65535):
        mixed = (89226354 * state + 64248484) % 2**32
        total = 0.0
        for half in (mixed & 0xFFFF, mixed >> 16):
            bits = half & 0x8FFF ^ 0x3B60
            exponent, mantissa = bits >> 10 & 31, bits & 1023
            total += (-1) ** (bits >> 15) * 2.0 ** (exponent - 15) * (1 + mantissa / 1024)
        assert code[state] == pytest.approx(total, abs=1e-3)


def test_hybrid_by_hand():
    rng = np.random.default_rng(0)
    table = np.abs(rng.standard_normal((512, 2), dtype=np.float32))
    code = qtip.hybrid(table)
    assert code.shape == (2, 65536)
    for state in (0, 1, 181, 4242, 65535):
        mixed = (state * state + state) % 2**32
        pair = table[mixed % 2**15 // 2**6].copy()
        pair[0] *= -1 if mixed // 2**15 % 2 else 1
        assert np.array_equal(code[:, state], pair)


@pytest.mark.parametrize("size", [0, 3, 2**16])
def test_hybrid_wants_a_power_of_two(size):
    with pytest.raises(ConfigError, match="power of two"):
        qtip.hybrid(np.zeros((size, 2), dtype=np.float32))


def test_gaussian_error_of_the_paper():
    # Tseng et al. 2024, Table 1, 2 bits: 0.069 computed, 0.068 random; D(R) is 0.0625.
    x = np.random.default_rng(5).standard_normal(qtip.SEQUENCE, dtype=np.float32)
    for code, wanted in ((qtip.one_mad(), 0.069), (qtip.random_code(), 0.068)):
        error = np.square(x - qtip.quantise(x, code, 2)).mean() / np.square(x).mean()
        assert error == pytest.approx(wanted, abs=0.003)


def test_sequences_are_decided_apart():
    x = np.random.default_rng(6).standard_normal(2 * qtip.SEQUENCE, dtype=np.float32)
    code = qtip.random_code(2, state_bits=6)
    whole = qtip.quantise(x, code, 2)
    for part in np.split(np.arange(len(x)), 2):
        assert np.array_equal(qtip.quantise(x[part], code, 2), whole[part])


@pytest.mark.parametrize(
    ("samples", "dimension", "bits"),
    [(0, 1, 2), (4097, 1, 2), (4095, 2, 2), (64, 1, 8), (64, 2, 4), (64, 1, 0)],
)
def test_what_does_not_fit_is_refused(samples, dimension, bits):
    code = qtip.random_code(dimension, state_bits=8)
    with pytest.raises(ConfigError, match="wanted"):
        qtip.quantise(np.zeros(samples, dtype=np.float32), code, bits)


@pytest.mark.parametrize(("bits", "published"), [(1, 0.2803), (2, 0.0733), (3, 0.0198)])
def test_error_of_rings_of_the_paper(bits, published):
    # Tseng et al. 2024, Table 2: sequences of 256, Algorithm 4, L = 12.
    x = np.random.default_rng(7).standard_normal((64, 256), dtype=np.float32)
    code = qtip.random_code(seed=1, state_bits=12)
    error = np.square(x - qtip.quantise_rings(x, code, bits)).mean() / np.square(x).mean()
    assert error == pytest.approx(published, rel=0.015)


def test_rings_cost_little_more_than_free_paths():
    x = np.random.default_rng(7).standard_normal((16, 256), dtype=np.float32)
    code = qtip.random_code(seed=1, state_bits=12)
    ring = np.square(x - qtip.quantise_rings(x, code, 2)).mean()
    free = np.mean([np.square(row - qtip.quantise(row, code, 2)).mean() for row in x])
    assert free <= ring <= 1.05 * free


@pytest.mark.parametrize(("samples", "bits"), [(255, 2), (256, 4), (2, 2)])
def test_what_does_not_close_to_a_ring_is_refused(samples, bits):
    with pytest.raises(ConfigError, match="do not close"):
        qtip.quantise_rings(
            np.zeros((1, samples), dtype=np.float32), qtip.random_code(2, state_bits=8), bits
        )
