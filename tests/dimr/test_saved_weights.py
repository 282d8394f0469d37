"""The choice of a run's weights: raw or averaged, at any step, and what an average still holds of its start."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

import dimr
from dimr import CheckpointError
from dimr.checkpoints.weights import MUCH
from dimr.cli import main
from dimr.training.ema import ExponentialMovingAverage, initial_share
from dimr.training.saved import read_weights
from tests.support.training_runs import write_recipe

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

XL = (0.9999, False)  # decay and ramp of the recipes of the paper's models


class TestInitialShare:
    @pytest.mark.parametrize(
        ("decay", "ramp", "updates", "share"),
        [
            (*XL, 0, 1.0),
            (*XL, 300, 0.9704441),
            (*XL, 5000, 0.6065155),
            (*XL, 23_024, 0.1000070),
            (*XL, 23_025, 0.0999970),
            (0.9999, True, 1, 1 / 10),
            (0.9999, True, 2, 1 / 55),
            (0.9999, True, 20, math.factorial(20) * math.factorial(9) / math.factorial(29)),
            (0.5, True, 9, math.prod((1 + n) / (10 + n) for n in range(8)) * 0.5),  # from (1 + 8) / (10 + 8) on, 0.5
            (0.0, False, 1, 0.0),
        ],
    )
    def test_values(self, decay, ramp, updates, share):
        assert initial_share({"updates": updates}, decay, ramp) == pytest.approx(share, rel=1e-6)
        ema = ExponentialMovingAverage(torch.nn.Linear(1, 1), decay, ramp)
        for _ in range(min(updates, 5000)):
            ema.update()
        if updates <= 5000:
            assert ema.initial_share == pytest.approx(share, rel=1e-6)

    def test_is_what_the_average_keeps(self):
        linear = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.ones_(linear.weight)
        ema = ExponentialMovingAverage(linear, *XL)
        torch.nn.init.zeros_(linear.weight)
        for _ in range(300):
            ema.update()
        assert ema.state_dict()["averages"]["weight"].item() == pytest.approx(0.9704441, rel=1e-6)

    def test_goes_on_with_another_decay(self):
        first = ExponentialMovingAverage(torch.nn.Linear(1, 1), 0.5, ramp=False)
        for _ in range(3):
            first.update()
        second = ExponentialMovingAverage(torch.nn.Linear(1, 1), 0.9, ramp=False)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        second.update()
        assert second.initial_share == pytest.approx(0.5**3 * 0.9)
        old = first.state_dict()
        del old["initial_share"]  # of an older version
        second.load_state_dict(old)
        assert second.initial_share == pytest.approx(0.9**3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of twelve steps with the average of the XL recipes, saved every third."""
    folder = tmp_path_factory.mktemp("run")
    settings = ("--set", "training.ema_decay=0.9999", "--set", "training.ema_ramp=false")
    recipe = write_recipe(folder)
    assert main(["train", str(recipe), "--output", str(folder / "run"), "--device", "cpu", *settings]) == 0
    return folder / "run"


def command(*words) -> int:
    return main([*map(str, words)])


def sample(source, output, *more) -> torch.Tensor:
    words = ("sample", source, "--output", output, "--device", "cpu", "--steps", 2, "--per-class", 1, *more)
    assert command(*words) == 0
    return load_file(output)["samples"]


class TestReadWeights:
    def test_of_a_run(self, run):
        for step in (6, 9, 12):
            file = run / "checkpoints" / f"step-{step:08d}.pt"
            state = torch.load(file, weights_only=True)
            for kind, tensors in (("raw", state["model"]), ("ema", state["ema"]["averages"])):
                for found in (read_weights(run, kind, step), read_weights(file, kind)):
                    assert (found.file, found.kind, found.step) == (file, kind, step)
                    assert found.initial_share == pytest.approx(0.9999**step if kind == "ema" else 0)
                    assert found.config.num_classes == 3
                    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
        default, model = read_weights(run), read_weights(run / "model")
        assert (default.kind, default.step) == (model.kind, model.step) == ("ema", 12)
        assert model.initial_share == default.initial_share
        assert all(torch.equal(model.tensors[name], value) for name, value in default.tensors.items())

    def test_what_is_not_there_is_named(self, run, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are: 6, 9, 12"):
            read_weights(run, step=3)
        with pytest.raises(CheckpointError, match=r"--step: .*model is not the folder of a run"):
            read_weights(run / "model", step=6)
        with pytest.raises(CheckpointError, match=r"--weights raw: .*model holds the average only; give the folder of"):
            read_weights(run / "model", "raw")
        dimr.save_model(dimr.create_model("dimr-tiny-3r"), tmp_path)
        with pytest.raises(CheckpointError, match=r"--weights ema: .* holds one set of weights only"):
            read_weights(tmp_path, "ema")
        with pytest.raises(CheckpointError, match=r"--weights: .*model\.safetensors is not of a run"):
            read_weights(tmp_path / "model.safetensors", "raw")

    @pytest.mark.parametrize("text", ["[]", "{}", '{"weights": "some", "step": 1, "initial_share": 0}', "{"])
    def test_a_damaged_record_is_named(self, run, tmp_path, text):
        shutil.copytree(run / "model", tmp_path / "model")
        (tmp_path / "model" / "weights.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"weights\.json"):
            read_weights(tmp_path / "model")

    def test_a_damaged_average_is_named(self, run, tmp_path):
        state = torch.load(run / "checkpoints" / "step-00000012.pt", weights_only=True)
        del state["ema"]["averages"]
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=r"state\.pt: the average is damaged: KeyError"):
            read_weights(tmp_path / "state.pt")


class TestCommands:
    def test_sample(self, run, tmp_path, caplog):
        whole = sample(run, tmp_path / "run.safetensors")
        file = run / "checkpoints" / "step-00000012.pt"
        assert caplog.messages[:2] == [
            f"reading the average after 12 steps in {file}",
            f"the average after 12 steps in {file}: 99.9% of it is still what training began with; "
            "--weights raw on the run's folder takes the weights of the last step",
        ]
        assert torch.equal(whole, sample(run / "model", tmp_path / "model.safetensors"))
        assert "99.9% of it is still" in caplog.messages[-1]
        caplog.clear()
        raw = sample(run, tmp_path / "raw.safetensors", "--weights", "raw")
        assert caplog.messages == [f"reading the raw weights after 12 steps in {file}"]
        early = sample(run, tmp_path / "early.safetensors", "--step", 6, "--classes", "class0,class1,class2")
        assert not torch.equal(whole, raw)
        assert not torch.equal(whole, early)

    def test_other_weights_do_not_continue_samples(self, run, tmp_path, capsys):
        words = ("sample", run, "--output", tmp_path / "s", "--device", "cpu", "--steps", 2, "--per-class", 1)
        assert command(*words) == 0
        assert command(*words) == 0
        for more in (("--weights", "raw"), ("--step", 9)):
            assert command(*words, *more) == 2
            assert "holds samples of other settings (model " in capsys.readouterr().err

    def test_mistakes(self, run, tmp_path, capsys):
        assert command("sample", run, "--output", tmp_path / "a.npz", "--step", 7) == 2
        assert "has no checkpoint of step 7; there are: 6, 9, 12" in capsys.readouterr().err
        assert command("evaluate", run, "--reference", run) == 2
        assert f"{run} holds a model, not pictures: dimr sample {run} --output" in capsys.readouterr().err
        assert command("convert", run, tmp_path / "out", "--model", "dimr-xl-2r") == 2
        assert f"--model: {run} is a folder, which says itself what it holds" in capsys.readouterr().err
        assert command("convert", run, tmp_path / "out", "--key", "ema") == 2
        assert f"--key: {run} is of a run, which says itself what it holds" in capsys.readouterr().err

    def test_info_and_analysis(self, run, tmp_path, capsys):
        assert command("info", run) == 0
        assert '"num_classes": 3' in capsys.readouterr().out
        pytest.importorskip("matplotlib")
        for step in (6, 12):
            options = ("--weights", "raw", "--step", step)
            assert command("analyze", "pca", run, "--output", tmp_path / str(step), *options) == 0

    def test_convert(self, run, tmp_path, caplog):
        for kind, step in (("raw", 9), ("ema", 12)):
            wanted = read_weights(run, kind, step)
            folder, file = tmp_path / f"{kind}", tmp_path / f"{kind}.safetensors"
            for target in (folder, file):
                assert command("convert", run, target, "--weights", kind, "--step", step) == 0
            assert f"reading {wanted.describe()}" in caplog.text
            assert all(torch.equal(v, wanted.tensors[k]) for k, v in load_file(folder / "model.safetensors").items())
            about = {"weights": kind, "step": step, "initial_share": wanted.initial_share}
            assert json.loads((folder / "weights.json").read_text()) == about
            assert json.loads((folder / "class_names.json").read_text()) == ["class0", "class1", "class2"]
            again = tmp_path / f"{kind} again"
            assert command("convert", folder, again, "--weights", kind) == 0  # a folder that says what it has
            assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
            model = dimr.load_official_checkpoint(file, wanted.config)
            torch.testing.assert_close(model.state_dict(), wanted.tensors, rtol=0, atol=2**-23)
        state = run / "checkpoints" / "step-00000009.pt"
        assert command("convert", state, tmp_path / "of_state", "--weights", "raw") == 0
        first, second = (tmp_path / name / "model.safetensors" for name in ("raw", "of_state"))
        assert first.read_bytes() == second.read_bytes()

    def test_convert_to_a_pipeline(self, run, tmp_path):
        pytest.importorskip("diffusers")
        from dimr.diffusers_pipeline import DiMRPipeline

        assert command("convert", run, tmp_path / "pipeline", "--pipeline", "--weights", "raw") == 0
        pipeline = DiMRPipeline.from_pretrained(str(tmp_path / "pipeline"))
        assert list(pipeline.class_names) == ["class0", "class1", "class2"]
        tensors = read_weights(run, "raw").tensors
        assert all(torch.equal(v, tensors[k]) for k, v in pipeline.transformer.to_dimr().state_dict().items())

    def test_published_checkpoints_have_both(self, tmp_path, capsys):
        """A folder STEP.ckpt of the published code."""
        model = dimr.create_model("dimr-tiny-3r")
        folder = tmp_path / "500.ckpt"
        folder.mkdir()
        for name, value in (("nnet_ema.pth", 1.0), ("nnet.pth", 2.0)):
            with torch.no_grad():
                model.branches[0].class_embedding.weight.fill_(value)
            dimr.save_model(model, tmp_path / "model")
            command("convert", tmp_path / "model", folder / name)
        for options, value in (((), 1.0), (("--weights", "ema"), 1.0), (("--weights", "raw"), 2.0)):
            assert command("convert", folder, tmp_path / "out", "--model", "dimr-tiny-3r", *options) == 0
            assert dimr.load_model(tmp_path / "out").branches[0].class_embedding.weight.unique().item() == value
        assert f"reading the raw weights, {folder / 'nnet.pth'}" in capsys.readouterr().out

    def test_grids_on_the_way(self, tmp_path):
        recipe, grids = write_recipe(tmp_path), []
        options = ["run.sample_every=2", "run.sample_steps=1", "run.sample_columns=2", "training.steps=2"]
        for kind in ("ema", "raw"):
            every = [*options, f"run.sample_weights={kind}", "training.ema_ramp=false", "training.learning_rate=0.1"]
            words = [word for option in every for word in ("--set", option)]
            assert command("train", recipe, "--output", tmp_path / kind, "--device", "cpu", *words) == 0
            grids.append((tmp_path / kind / "samples" / "step-00000002.png").read_bytes())
        assert grids[0] != grids[1]
        words[words.index("run.sample_weights=raw")] = "run.sample_weights=mean"
        assert command("train", recipe, "--output", tmp_path / "mean", "--device", "cpu", *words) == 2

    def test_training_warns_at_its_end(self, tmp_path, caplog):
        recipe = write_recipe(tmp_path)
        words = ("train", recipe, "--output", tmp_path / "run", "--device", "cpu", "--set", "training.steps=2")
        assert command(*words, "--set", "training.ema_ramp=false") == 0
        warning = "81.0% of the average is still what training began with, for training.ema_decay = 0.9: sample with"
        assert warning in caplog.text
        caplog.clear()
        assert command(*words, "--overwrite") == 0  # with the ramp, 1/55
        assert "of the average is still" not in caplog.text
        assert MUCH > 1 / 55
