from __future__ import annotations

import pytest

from benchmarks.reporting.records import parse
from benchmarks.reporting.rows import OPERATORS, as_rows
from benchmarks.targets import TARGETS, Target, evaluate

from .synthetic import CPU, values


def outcome(target, *records):
    """Evaluate the target on synthetic records; return the outcome of its first operator and direction."""
    return next(evaluate(as_rows(parse(record, "test") for record in records), [target]))


FRACTION = Target(("td_layer_norm",), ("forward",), "fraction_of_copy", 0.75, (192, 384))
FASTER = Target(("td_layer_norm",), ("forward",), "speed_up", 2.0, rivals=("cudnn", "aten"))
HOST = Target(("td_layer_norm",), ("forward",), "host_us", 25.0)


def narrow(us, width, **changes):
    return values(us=us, width=width, shape=f"64 x 257 x {width}", **changes)


def test_met_at_the_bound():
    found = outcome(FRACTION, values(us=100.0, width=384, fraction_of_copy=0.75))
    assert (found.verdict, found.values[0][0]) == ("met", 0.75)


def test_the_worst_shape_decides():
    found = outcome(FRACTION, narrow(50.0, 192), narrow(80.0, 384), narrow(60.0, 240))
    assert found.verdict == "missed"
    assert [row.shape for _, row in found.values] == ["64 x 257 x 384", "64 x 257 x 240", "64 x 257 x 192"]
    assert found.values[0][0] == pytest.approx(0.625)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 480},
        {"width": 160},
        {"scope": "sweep"},
        {"direction": "backward"},
        {"operator": "td_rms_norm"},
        {"dtype": "float32"},
        {"implementation": "eager"},
        {"on": CPU},
    ],
    ids=str,
)
def test_other_records_do_not_count(changes):
    found = outcome(FRACTION, values(**{"width": 240, **changes}))
    assert (found.verdict, found.values) == ("not measured", ())


def test_not_measured_everywhere():
    found = outcome(FRACTION, narrow(50.0, 192), narrow(50.0, 240, implementation="eager"))
    assert found.verdict == "met where measured, 1 not measured"
    found = outcome(FRACTION, narrow(90.0, 192), narrow(50.0, 240, implementation="eager"))
    assert found.verdict == "missed"


def test_the_faster_rival_counts():
    rivals = {"cudnn nhwc": 70.0, "cudnn nchw": 45.0, "aten nhwc": 50.0, "aten nchw": 90.0, "eager": 1.0}
    records = [values(us=us, implementation=name) for name, us in rivals.items()]
    found = outcome(FASTER, values(us=20.0), *records)
    assert (found.verdict, found.values[0][0]) == ("met", 2.25)
    found = outcome(FASTER, values(us=30.0), *records)
    assert (found.verdict, found.values[0][0]) == ("missed", 1.5)


def test_every_rival_must_have_run():
    found = outcome(FASTER, values(us=20.0), values(us=90.0, implementation="cudnn nhwc"))
    assert found.verdict == "not measured"


def test_host_time_is_worst_at_its_most():
    found = outcome(HOST, narrow(50.0, 192, host_us=24.0), narrow(50.0, 240, host_us=25.0))
    assert (found.verdict, found.values[0][0]) == ("met", 25.0)
    found = outcome(HOST, narrow(50.0, 192, host_us=25.5), narrow(50.0, 240, host_us=20.0))
    assert (found.verdict, found.values[0][0]) == ("missed", 25.5)


def test_a_target_for_a_cpu():
    (target,) = [target for target in TARGETS if target.on_cpu]
    shape = {"operator": "pixel_shuffle_add", "on": CPU}
    found = outcome(target, values(us=80.0, **shape), values(us=180.0, implementation="eager", **shape))
    assert (found.verdict, found.values[0][0]) == ("met", 2.0)  # wall time: 200 / 100
    gpu = {"operator": "pixel_shuffle_add", "dtype": "float32"}
    found = outcome(target, values(us=80.0, **gpu), values(us=180.0, implementation="eager", **gpu))
    assert found.verdict == "not measured"


def test_each_width_by_itself():
    (target,) = [target for target in TARGETS if target.each_width]
    shape = {"operator": "geglu_linear"}
    times = {480: (50.0, 60.0), 960: (50.0, 55.0)}
    records = [
        narrow(us, width, implementation=name, **shape)
        for width, pair in times.items()
        for us, name in zip(pair, ("fused", "compiled"), strict=True)
    ]
    found = list(evaluate(as_rows(parse(record, "test") for record in records), [target]))
    assert [(o.target.widths, o.verdict) for o in found] == [((480, 480), "met"), ((960, 960), "missed")]


def test_words():
    assert str(FRACTION) == ">= 75% of copy bandwidth"
    assert str(FASTER) == ">= 2x the faster of cudnn and aten"
    assert str(HOST) == "host time <= 25 us"
    assert str(Target((), (), "speed_up", 1.15, rivals=("compiled",))) == ">= 1.15x compiled"


def test_every_target_is_of_known_operators_and_is_unmeasured_without_records():
    outcomes = list(evaluate([]))
    assert {o.operator for o in outcomes} == set(OPERATORS) - {"depthwise_conv3x3"}
    assert {o.verdict for o in outcomes} == {"not measured"}
    assert len({(o.operator, o.direction, str(o.target), o.target.widths) for o in outcomes}) == len(outcomes)


@pytest.mark.parametrize(
    ("operator", "direction", "width", "bounds"),
    [
        ("td_layer_norm", "forward", 960, {"fraction_of_copy": [0.85], "speed_up": [1.0, 4.0], "host_us": [25.0]}),
        ("td_rms_norm", "forward", 240, {"fraction_of_copy": [0.75], "speed_up": [1.0, 4.0], "host_us": [25.0]}),
        ("td_layer_norm", "forward", 38400, {"fraction_of_copy": [0.75], "host_us": [25.0]}),
        ("td_layer_norm", "backward", 480, {"fraction_of_copy": [0.70], "speed_up": [1.3]}),
        ("td_rms_norm_residual", "forward", 240, {"fraction_of_copy": [0.85], "host_us": [25.0]}),
        ("geglu", "backward", 1920, {"fraction_of_copy": [0.90]}),
        ("geglu_linear", "forward", 1920, {"speed_up": [1.15], "host_us": [25.0]}),
        ("depthwise_conv7x7", "input_gradient", 480, {"fraction_of_copy": [0.55], "speed_up": [2.0]}),
        ("depthwise_conv7x7", "weight_gradient", 480, {"speed_up": [4.0]}),
        ("pixel_shuffle_add", "backward", 480, {"fraction_of_copy": [0.90]}),
        ("shuffle_norm_add", "forward", 480, {"fraction_of_copy": [0.80], "host_us": [25.0]}),
    ],
)
def test_bounds_on_a_gpu(operator, direction, width, bounds):
    implementations = ("fused", "eager", "compiled", "cudnn nhwc", "aten nhwc")
    shape = {"operator": operator, "direction": direction, "width": width}
    records = [parse(values(**shape, implementation=name), "test") for name in implementations]
    found: dict[str, list[float]] = {}
    for result in evaluate(as_rows(records)):
        if result.values:
            found.setdefault(result.target.metric, []).append(result.target.bound)
    assert found == bounds
