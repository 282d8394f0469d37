from __future__ import annotations

import json

import pytest

import dimr


def test_derived_sizes():
    config = dimr.DiMRConfig(dims=(960, 480), layers=(39, 20), input_size=32)
    assert (config.patch_sizes, config.resolutions, config.blocks) == ((2, 1), (16, 32), (39, 21))
    assert config.hidden_dims == (1920, 960)
    assert config.num_embeddings == 1001
    assert dimr.DiMRConfig(unconditional_class=False).num_embeddings == 1000


def test_survives_json():
    for name in dimr.list_models():
        config = dimr.model_config(name)
        assert dimr.DiMRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_lists_become_tuples():
    assert dimr.DiMRConfig(dims=[64, 32], layers=[3, 2]).dims == (64, 32)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"in_channels": 3.0}, TypeError, "in_channels must be an integer, got 3.0"),
        ({"num_classes": True}, TypeError, "num_classes must be an integer"),
        ({"dims": 960}, TypeError, "dims must be a list of values, got 960"),
        ({"dims": ()}, ValueError, "dims must have at least one"),
        ({"dims": (960, -1)}, ValueError, r"dims\[1\] must be at least 1, got -1"),
        ({"layers": (39,)}, ValueError, "layers must have one entry per branch"),
        ({"layers": (39, "20")}, TypeError, r"layers\[1\] must be an integer, got '20'"),
        ({"input_size": 33}, ValueError, "input_size must be a multiple of 2 for 2 branches, got 33"),
        ({"num_heads": 7}, ValueError, r"num_heads must divide dims\[0\] = 960, got 7"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be one of 3, 5, 7; got 4"),
        ({"mlp_ratio": 1.0001}, ValueError, "mlp_ratio must give a whole number"),
        ({"mlp_ratio": float("nan")}, ValueError, "mlp_ratio must give a whole number"),
        ({"mlp_ratio": "2"}, TypeError, "mlp_ratio must be a number"),
        ({"unconditional_class": 1}, TypeError, "unconditional_class must be true or false, got 1"),
        ({"norm": "batch"}, ValueError, "norm must be one of 'td_layer', 'td_rms', 'layer', 'adaln_zero'; got 'batch'"),
    ],
)
def test_bad_fields_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        dimr.DiMRConfig(**fields)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown key 'width'"):
        dimr.DiMRConfig.from_dict({"width": 3})
    with pytest.raises(ValueError, match="unknown key 'width'"):
        dimr.create_model("dimr-tiny-3r", width=3)
    with pytest.raises(ValueError, match="no model is called 'dimr-s'; there are dimr-tiny-3r"):
        dimr.create_model("dimr-s")
