from nwc.reporting.leaderboard import bits_at, series, table


def row(method, bits, kl):
    return {
        "method": method, "bits": bits - 1, "file_bits": bits, "kl_divergence": kl,
        "top1_agreement": 0.9, "perplexity": 7.0, "reference_perplexity": 6.5, "seconds": 3.0,
    }  # fmt: skip


OURS = [row("nwc", 5.0, 0.04), row("nwc", 4.0, 0.16), row("nwc", 6.0, 0.01)]


def test_bits_at_equal_divergence_lie_between_measured_points():
    assert bits_at(OURS, 0.08) == 4.5
    assert bits_at(OURS, 0.16) == 4.0
    assert bits_at(OURS, 0.2) is None
    assert bits_at(OURS, 0.005) is None
    assert bits_at(OURS, 0.0) is None


def test_rows_come_by_method_and_rate():
    found = series([row("rtn", 5.0, 0.1), *OURS])
    assert list(found) == ["rtn", "nwc"]
    assert [each["file_bits"] for each in found["nwc"]] == [4.0, 5.0, 6.0]


def test_table_says_what_the_first_method_takes_for_the_same():
    page = table([*OURS, row("rtn", 5.0, 0.08), row("rtn", 3.0, 0.5)], "a title")
    lines = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines()}
    cells = {(line[0], line[2]): line[-1] for line in lines if len(line) == 8}
    assert cells["rtn", "5.000"] == "4.500 (-0.500)"
    assert cells["rtn", "3.000"] == ""
    assert cells["nwc", "5.000"] == ""
    assert page.startswith("# a title\n")
