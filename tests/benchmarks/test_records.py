from __future__ import annotations

import json
import logging

import pytest

from benchmarks.reporting.records import RecordError, as_json, merge, read
from benchmarks.reporting.rows import as_rows

from .synthetic import CPU, values, write_run


def test_reads_what_pytest_writes(tmp_path):
    (record,) = read(write_run(tmp_path / "run.json", values(us=50.0, dtype="torch.bfloat16", unheard_of=1)))
    assert (record.kernel_us, record.wall_us, record.dtype, record.cuda) == (50.0, 70.0, "bfloat16", "13.0")
    assert record.microseconds == 50.0


def test_a_cpu_is_timed_by_the_wall(tmp_path):
    (record,) = read(write_run(tmp_path / "run.json", values(us=50.0, on=CPU)))
    assert (record.kernel_us, record.triton, record.microseconds) == (None, None, 70.0)


def test_whole_models_are_left_out(tmp_path, caplog):
    path = write_run(tmp_path / "run.json", {"giga_macs_per_row": 53.5, "rows": 8}, values())
    with caplog.at_level(logging.INFO):
        assert len(read(path)) == 1
    assert "1 measurements of whole models" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wall_us": None}, "key 'wall_us' is missing"),
        ({"operator": None}, "key 'operator' is missing"),
        ({"python": None}, "key 'python' is missing"),
        ({"operator": " "}, "key 'operator': found ' ', want text"),
        ({"triton": 3.6}, "key 'triton': found 3.6, want text"),
        ({"direction": "sideways"}, "key 'direction': found 'sideways', want one of forward"),
        ({"scope": "all"}, "key 'scope': found 'all', want one of target"),
        ({"wall_us": 0}, "key 'wall_us': found 0, want a number above 0"),
        ({"kernel_us": -1.0}, "key 'kernel_us': found -1.0, want a number above 0"),
        ({"bytes": "many"}, "key 'bytes': found 'many', want a number above 0"),
        ({"host_us": True}, "key 'host_us': found True"),
        ({"fraction_of_copy": float("nan")}, "key 'fraction_of_copy': found nan"),
        ({"relative_error_float64": float("inf")}, "key 'relative_error_float64': found inf, want a number from 0"),
        ({"flops": -1}, "key 'flops': found -1, want a number from 0"),
    ],
)
def test_refuses_a_bad_field(tmp_path, changes, message):
    path = write_run(tmp_path / "run.json", values(), values(**changes))
    with pytest.raises(RecordError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: test_1: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "key 'benchmarks' is missing"),
        ('{"machine_info": {}}', "key 'benchmarks' is missing"),
        ('{"benchmarks": {}}', "key 'benchmarks': found dict, want a list"),
        ('{"benchmarks": [3]}', "number 0: key 'extra_info': found int"),
        ('{"benchmarks": [{"name": "test_a"}]}', "test_a: key 'extra_info': found NoneType"),
    ],
)
def test_refuses_a_foreign_file(tmp_path, text, message):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def load(*paths):
    return merge([(path, read(path)) for path in paths])


def test_the_later_file_counts(tmp_path, caplog):
    first = write_run(tmp_path / "first.json", values(us=50.0), values(us=80.0, implementation="eager"))
    second = write_run(tmp_path / "second.json", values(us=60.0), values(us=70.0, shape="8 x 257 x 960", batch=8))
    merged = load(first, second)
    found = {(record.shape, record.implementation): record.kernel_us for record in merged}
    assert found == {
        ("64 x 257 x 960", "fused"): 60.0,
        ("64 x 257 x 960", "eager"): 80.0,
        ("8 x 257 x 960", "fused"): 70.0,
    }
    assert f"{second}: td_layer_norm, forward, 64 x 257 x 960, bfloat16, fused replaces what {first} has" in caplog.text


@pytest.mark.parametrize("change", [{"device": "NVIDIA H200"}, {"architecture": "sm_80"}])
def test_refuses_two_devices(tmp_path, change):
    first = write_run(tmp_path / "first.json", values())
    # The same measurement, which would replace the first file's, from another machine.
    second = write_run(tmp_path / "second.json", values(**change))
    (key,) = change
    with pytest.raises(RecordError, match=f"{second}: key '{key}': found '{change[key]}', but {first}"):
        load(first, second)


def test_refuses_nothing(tmp_path):
    with pytest.raises(RecordError, match="no measurement of an operator"):
        load(write_run(tmp_path / "run.json"))


def test_own_file_reads_back_in_a_stable_order(tmp_path):
    records = [values(us=float(us), batch=us, shape=f"{us} x 257 x 960") for us in (30, 10, 20)]
    one = as_json(load(write_run(tmp_path / "one.json", *records)))
    other = as_json(load(write_run(tmp_path / "other.json", *reversed(records))))
    assert one == other
    assert len(one.splitlines()) == len(records) + 2  # a record to a line
    assert "note" not in json.loads(one)["records"][0]  # absent, not null
    saved = tmp_path / "records.json"
    saved.write_text(one)
    assert as_json(load(saved)) == one


def test_rows(tmp_path):
    run = write_run(
        tmp_path / "run.json",
        values(us=10.0, operator="geglu"),
        values(us=10.0, batch=1, shape="1 x 257 x 960", scope="sweep"),
        values(us=60.0, implementation="liger"),
        values(us=50.0, implementation="eager"),
        values(us=20.0),
        values(us=30.0, implementation="compiled", kernel_us=None),
        values(us=5.0, direction="backward", implementation="eager"),
    )
    rows = as_rows(load(run))
    assert [(row.operator, row.direction, row.any_record.scope) for row in rows] == [
        ("td_layer_norm", "forward", "target"),
        ("td_layer_norm", "forward", "sweep"),
        ("td_layer_norm", "backward", "target"),
        ("geglu", "forward", "target"),
    ]
    assert list(rows[0].rivals) == ["eager", "compiled", "liger"]
    assert rows[0].speed_ups() == {"eager": 2.5, "liger": 3.0}  # no kernel time, no comparison
    assert rows[2].speed_ups() == {}
    assert rows[2].ours is None
