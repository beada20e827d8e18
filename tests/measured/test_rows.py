"""The reader of measured runs: what users write, and what they write wrongly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoparallel.errors import ProfileError
from autoparallel.measured.rows import COLUMNS, REQUIRED, read_runs

ROW = {
    "num_layers": "24",
    "hidden_size": "2048",
    "num_attention_heads": "16",
    "seq_length": "2048",
    "gpu": "a100-sxm-80gb",
    "num_gpus": "8",
    "tensor_model_parallel_size": "2",
    "pipeline_model_parallel_size": "2",
    "micro_batch_size": "1",
    "global_batch_size": "16",
    "iteration_s": "1.5",
}


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes):
        path = tmp_path / "runs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def csv(*rows, end="\n"):
    return end.join([",".join(ROW), *(",".join((ROW | row).values()) for row in rows), ""])


def test_a_row_says_what_it_says_and_no_more(write):
    (run,) = read_runs(write(csv({})))
    assert (run.num_layers, run.gpu, run.seconds) == (24, "a100-sxm-80gb", 1.5)
    assert run.zero_stage is None
    assert run.recompute == ""
    assert set(REQUIRED) <= set(COLUMNS)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends(write, mark, end):
    runs = read_runs(write(mark + csv({}, {"num_gpus": "16"}, end=end).encode()))
    assert [r.num_gpus for r in runs] == [8, 16]


def test_tokens_per_second_make_a_step_time(write):
    text = csv({"iteration_s": ""}).replace("iteration_s", "tokens_per_s_per_gpu")
    head, row, _ = text.split("\n")
    (run,) = read_runs(write(f"{head}\n{row}4096\n"))
    assert run.seconds == pytest.approx(16 * 2048 / (4096 * 8))


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("iteration_s", "nan"),
        ("iteration_s", "inf"),
        ("iteration_s", "-1"),
        ("iteration_s", "1e400"),
        ("iteration_s", "fast"),
        ("num_gpus", "-8"),
        ("num_gpus", "0"),
        ("num_gpus", "8.5"),
        ("num_gpus", "1" * 40),
        ("hidden_size", ""),
        ("gpu", " "),
    ],
)
def test_a_bad_cell_is_named_with_its_line(write, column, cell):
    with pytest.raises(ProfileError, match=rf"runs\.csv line 3: {column}"):
        read_runs(write(csv({}, {column: cell})))


def test_lines_are_those_of_the_file_not_of_the_rows(write):
    text = csv({}).replace("iteration_s", "iteration_s,notes", 1)
    text = text.replace("1.5\n", '1.5,"two\nlines"\n\n') + ",".join(
        (ROW | {"num_gpus": "x"}).values()
    )
    with pytest.raises(ProfileError, match="line 5: num_gpus"):
        read_runs(write(text + ",\n"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (csv({}).replace("gpu,", "gpus,", 1), ("line 1", "unknown column 'gpus'", "did you mean")),
        (csv({}).replace("hidden_size", "num_layers", 1), ("line 1", "'num_layers'", "repeated")),
        (csv({}).replace(",iteration_s", "", 1), ("line 2", "more cells")),
        (csv({"iteration_s": ""}), ("line 2", "measures nothing")),
        (csv({}).replace("1.5", '"1.5'), ("line 2", "CSV")),
        ("", ("line 1", "num_layers", "missing")),
        ("num_layers\n24\n", ("line 1", "hidden_size", "missing")),
        (b"\xff\xfe" + csv({}).encode("utf-16-le"), ("UTF-8",)),
    ],
)
def test_a_bad_file_says_what_is_wrong(write, content, words):
    with pytest.raises(ProfileError) as caught:
        read_runs(write(content))
    assert all(word in str(caught.value) for word in (*words, "runs.csv"))


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ProfileError, match="cannot be read"):
            read_runs(path)


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_a_profile_error(write, content):
    with pytest.raises(ProfileError):
        read_runs(write(content))


@given(st.sampled_from(sorted(COLUMNS)), st.text(max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cell_is_read_or_refused(write, column, cell):
    cell = cell.replace("\0", "")
    row = ROW | {column: '"' + cell.replace('"', '""') + '"'}
    text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
    try:
        (run,) = read_runs(write(text.encode("utf-8", "surrogatepass")))
    except ProfileError:
        return
    assert isinstance(getattr(run, column), int | float | str | None)
