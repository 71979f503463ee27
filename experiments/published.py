"""The numbers that the paper prints (arXiv 2510.11234, version 3), each with its place.

Its figures print no numbers beside their curves; what is here are its tables, and what the text
says. They are drawn hollow beside ours, or stand beside them in tables. Models differ by a factor
of 1,000 in size: the pattern can be compared, the values cannot.
"""

from __future__ import annotations

from typing import NamedTuple


class Printed(NamedTuple):
    """A number in the paper.

    Args:
        place: table or section.
        row: what it is of.
        quantity: what it is.
        value: the number.
        spread: what follows the plus-minus sign.
    """

    place: str
    row: str
    quantity: str
    value: float
    spread: float | None = None


def _rows(
    place: str, quantities: tuple[str, ...], rows: dict[str, tuple[float | None, ...]]
) -> list[Printed]:
    return [
        Printed(place, name, quantity, value)
        for name, values in rows.items()
        for quantity, value in zip(quantities, values, strict=True)
        if value is not None
    ]


PRINTED: list[Printed] = [
    # Statistics of query projections of Llama 3-8B; outliers in per cent of the weights.
    *_rows("Table 1", ("kurtosis", "max", "outliers"), {
        "original": (20.48, 43.57, 1.94),
        "dct": (0.46, 10.54, 0.50),
        "random rotation": (5.42, 16.77, 1.86),
        "rht": (5.44, 16.66, 1.86),
        "neural encoder": (0.00, 2.70, 0.00),
    }),
    # Milliseconds for a 4096 x 4096 tensor at 4 bits on a GPU.
    Printed("Table 2", "nwc", "encode_ms", 1640.0, 300.0),
    Printed("Table 2", "gptq", "encode_ms", 690.0, 20.0),
    Printed("Table 2", "qtip", "encode_ms", 19840.0, 300.0),
    Printed("Table 2", "quip_sharp", "encode_ms", 21710.0, 820.0),
    Printed("Table 2", "nwc", "decode_ms", 1.17, 0.07),
    Printed("Table 2", "gptq", "decode_ms", 0.08, 0.04),
    Printed("Table 2", "qtip", "decode_ms", 0.52, 0.02),
    Printed("Table 2", "quip_sharp", "decode_ms", 1.33, 0.33),
    Printed("Table 2", "nwc", "synthesis_ms", 1.07, 0.07),
    Printed("Table 2", "nwc", "entropy_decoding_ms", 0.10, 0.01),
    *_rows("Table 3", ("chunk_size", "width", "blocks", "channels", "learning_rate"), {
        "nwc": (16, 512, 4, 16, 1e-4),
    }),
    Printed("Table 3", "nwc", "auxiliary_learning_rate", 1e-3),
    # Llama 3-8B; ratio of bits in per cent.
    *_rows(
        "Table 4",
        ("ratio", "perplexity", "openbookqa", "arc_easy", "winogrande", "hellaswag", "piqa",
         "mathqa", "accuracy"),
        {
            "original": (100, 6.14, 0.35, 0.80, 0.73, 0.60, 0.80, 0.40, 0.61),
            "svd_llm": (80, 11.82, 0.29, 0.77, 0.64, 0.51, 0.72, 0.30, 0.54),
            "svd_llm_v2": (80, 8.01, 0.33, 0.79, 0.70, 0.58, 0.77, 0.36, 0.59),
            "nwc": (25, 6.32, 0.34, 0.80, 0.75, 0.60, 0.79, 0.39, 0.61),
        },
    ),
    # Llama 2-7B, context 4096.
    *_rows("Table 5", ("bits", "perplexity", "c4_perplexity"), {
        "original": (16, 5.12, 6.63),
        "pocketllm": (3.98, 5.27, 6.86),
        "nwc": (3.96, 5.17, 6.70),
    }),
    # Standard deviations over three seeds, Llama 3-8B.
    *_rows("Table 6", ("perplexity", "c4_perplexity", "common_sense", "mmlu"), {
        "3.96 bits": (0.009, 0.004, 0.23, 0.20),
        "4.80 bits": (0.008, 0.003, 0.07, 0.12),
        "5.98 bits": (0.005, 0.005, 0.08, 0.04),
    }),
    # Llama 3-8B, neither importance nor error compensation.
    *_rows("Table 7", ("bits", "perplexity", "c4_perplexity"), {
        "identity": (2.12, 27.8, 33.2),
        "learned": (2.13, 14.5, 20.7),
    }),
    # Overheads.
    Printed("Section 3.1", "nwc", "scale_bits", 0.004),
    Printed("Section 3.2", "nwc", "level_bits", 0.001),
    # Training of the codec.
    Printed("Section A.3", "nwc", "epochs", 60),
    Printed("Section A.3", "nwc", "hours", 11.45),
    Printed("Section B.2", "llm_qat", "hours", 280),
]  # fmt: skip

LAMBDAS = (30, 50, 100, 300, 1000, 10000)
"""Table 3."""

IMPORTANCE = (0.29, 0.83, 10.0, 20.0)
"""lambda_I, Table 3."""


def printed(place: str, row: str, quantity: str) -> float | None:
    """A number of the paper; None if it prints none.

    Example:
        >>> printed("Table 1", "rht", "kurtosis")
        5.44
    """
    for each in PRINTED:
        if (each.place, each.row, each.quantity) == (place, row, quantity):
            return each.value
    return None


def rows_of(place: str) -> list[str]:
    """What the numbers of a place are of, in its order."""
    return list(dict.fromkeys(each.row for each in PRINTED if each.place == place))
