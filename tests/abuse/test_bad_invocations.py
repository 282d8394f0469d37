"""Invalid commands exit with code 2 and one line, write nothing and change no existing file."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import numpy as np

import dimr
from dimr.cli import COMMANDS, build_parser, main
from tests.abuse.readers import autoencoder
from tests.support.pictures import class_folders, pixels
from tests.support.small_models import perturbed_model
from tests.support.training_runs import write_recipe

MODULE = """
import torch

def raises(): raise KeyError("a\\nb")
def wants(argument): pass
class Fails(torch.nn.Module):
    def forward(self, images): raise ValueError("not today")
class Scalar(torch.nn.Module):
    def forward(self, images): return torch.zeros(3)
class Nan(torch.nn.Module):
    def forward(self, images): return images.float().mean((2, 3)) * float("nan")
class Good(torch.nn.Module):
    def forward(self, images): return images.float().mean((2, 3))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a folder with one input of every kind."""
    place = tmp_path_factory.mktemp("place")
    pixel = {"input_size": 8, "dims": (16, 8), "layers": (1, 1), "num_heads": 2, "num_classes": 3, "kernel_size": 3}
    for name, more in {
        "model": {"in_channels": 1}, "latent": {"in_channels": 8}, "ablation": {"in_channels": 1, "norm": "layer"},
    }.items():  # fmt: skip
        dimr.save_model(perturbed_model(dimr.DiMRConfig(**pixel, **more)), place / name)
    for name in ("vae", "empty", "other", "pictures"):
        (place / name).mkdir()
    autoencoder(place / "vae")
    write_recipe(place / "empty").rename(place / "recipe.toml")
    (place / "empty" / "pictures").rename(place / "classes")
    class_folders(place / "pictures", pixels(3))
    (place / "file").write_text("x")
    (place / "other" / "notes").write_text("x")
    (place / "net_of_tests.py").write_text(MODULE)
    np.savez(place / "pixels.npz", arr_0=pixels(4), arr_1=[0, 1, 2, 0])
    np.savez(place / "grey.npz", samples=np.zeros((4, 1, 8, 8), np.float32), labels=[0, 1, 2, 0])
    return place


SAMPLE, TRAIN = "sample model --steps 2 --device cpu --output", "train recipe.toml --device cpu --output"
NET = "pixels.npz --device cpu --reference pixels.npz --features"
CLASSIFIER = "analyze distortion pixels.npz --output new --classifier"
BAD = f"""
{SAMPLE} new.txt
{SAMPLE} other
{SAMPLE} file
{SAMPLE} file/new.png
{SAMPLE} ''
{SAMPLE} /proc/new.png
{SAMPLE} new.png --classes 99999999999999999999
{SAMPLE} new.png --classes ''
{SAMPLE} new.png --classes ,
{SAMPLE} new.png --classes 0 --class-names nowhere
{SAMPLE} new.png --classes 0 --class-names empty
{SAMPLE} new.png --classes 0 --class-names file
{SAMPLE} new.png --device meta
{SAMPLE} new.png --device cuda:-1
{SAMPLE} new.png --device ''
{SAMPLE} new.png --decoder vae
{SAMPLE} new.png --decoder file
{SAMPLE} new.png --decoder model
{SAMPLE} new.png --count 99999999999999999999
{SAMPLE} new.png --steps 99999999999999999999
{SAMPLE} new.png --seed -1
{SAMPLE} new.png --batch-size 0
sample latent --output new.png --decoder vae
sample latent --output new.png
sample ablation --output new.png --engine --device cpu
sample file --output new.npz
sample empty --output new.npz
sample vae --output new.npz
train nowhere --output new
train empty --output new
train file --output new
{TRAIN} file
{TRAIN} file/new
{TRAIN} new --threads 99999999
{TRAIN} new --set training
{TRAIN} new --set =
{TRAIN} new --set a.b=1
{TRAIN} new --set training.steps=[[[[
{TRAIN} new --set model.dims=x
{TRAIN} new --set model.name=x
{TRAIN} new --set data.path=nowhere
{TRAIN} new --set data.path=empty
{TRAIN} new --set data.kind=latents
{TRAIN} new --set data.kind=hugging_face
{TRAIN} new --set data.kind=npz
{TRAIN} new --set data.image_size=16
{TRAIN} new --set run.device_batch=3
{TRAIN} new --set run.strategy=x
{TRAIN} new --set training.class_dropout=nan
{TRAIN} new --set training.loss_weights=[1]
{TRAIN} new --set model.dims=[16777216,16777216]
encode nowhere --autoencoder vae --output new
encode pictures --autoencoder nowhere --output new
encode pictures --autoencoder vae --output new --image-size 7
encode pictures --autoencoder vae --output new --image-size 8 --split train
encode pictures --autoencoder vae --output file --image-size 8
encode 'a-{{3..0}}.tar' --autoencoder vae --output new
encode pictures --autoencoder vae --output new --workers -1
evaluate {NET} net_of_tests:Fails
evaluate {NET} net_of_tests:Scalar
evaluate {NET} net_of_tests:Nan
evaluate {NET} net_of_tests:raises
evaluate {NET} net_of_tests:wants
evaluate {NET} net_of_tests:nothing
evaluate {NET} net_of_tests:
evaluate {NET} nowhere:nothing
evaluate {NET} :x
evaluate {NET} .a:x
evaluate {NET} os:getcwd
evaluate {NET} file
evaluate {NET} ''
evaluate {NET} net_of_tests:Good --inception-weights file
evaluate {NET} net_of_tests:Good --save-reference new.txt
evaluate {NET} net_of_tests:Good --save-reference file/new.npz
evaluate {NET} net_of_tests:Good --output other
evaluate grey.npz --reference pixels.npz --features net_of_tests:Good
evaluate pixels.npz --reference grey.npz --features net_of_tests:Good
evaluate empty --reference pixels.npz --features net_of_tests:Good
evaluate pixels.npz --reference pixels.npz --name x
analyze
analyze pca nowhere --output new
analyze pca file --output new
analyze pca ablation --output new
analyze pca model --output new --steps 1
analyze pca model --output new --components 999
analyze pca model --output file --steps 3
analyze distortion nowhere --classifier digits --output new
analyze distortion file --classifier digits --output new
analyze distortion pixels.npz --classifier digits --output new
analyze distortion grey.npz --classifier digits --output file
{CLASSIFIER} net_of_tests:Fails
{CLASSIFIER} net_of_tests:Scalar
{CLASSIFIER} net_of_tests:Nan
{CLASSIFIER} nothing
{CLASSIFIER} file
convert nowhere new
convert file new
convert file new --model dimr-tiny-3r
convert pixels.npz new --model dimr-tiny-3r
convert model new
convert model file/new.pth
convert ablation new.pth
convert empty new.pth
info nowhere
info file
info empty
info ''
demo --output file --steps 1 --device cpu
demo --output new --resume
demo --output new --size 1032
demo --output new --per-class 1
demo --output new --threads 0
nothing
"""


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def unmodified(place: Path) -> dict[str, bytes | None]:
    return {path: data for path, data in contents(place).items() if "__pycache__" not in path}


@pytest.mark.parametrize("line", BAD.strip().splitlines())
def test_bad_invocations(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    before = unmodified(place)
    try:
        code = main(shlex.split(line))
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.splitlines()[-1].startswith("dimr")
    assert ": error: " in error.splitlines()[-1]
    assert "Traceback" not in error
    after = unmodified(place)
    assert {path: after.get(path) for path in before} == before
    assert [path for path in after if path not in before and after[path] is not None] == []
    for path in sorted(set(after) - set(before), reverse=True):
        Path(path).rmdir()  # an empty folder is not half a result


def test_a_run_is_forgotten_only_when_another_can_begin(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    train = ["train", "recipe.toml", "--output", str(tmp_path), "--device", "cpu"]
    train += ["--set", "training.steps=1", "--set", f"data.path={place / 'classes'}"]
    assert main(train) == 0
    before = contents(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert main([*train, "--overwrite", "--set", "run.wandb=true"]) == 2
    assert {path: data for path, data in contents(tmp_path).items() if path.endswith(".pt")} == {
        path: data for path, data in before.items() if path.endswith(".pt")
    }
    assert main([*train, "--overwrite"]) == 0


def test_names_out_of_files_cannot_write_lines(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **{"x\n\x1b[2J": pixels(1)})
    assert (
        main(["evaluate", str(tmp_path / "a.npz"), "--reference", str(tmp_path), "--features", "torch.nn:Flatten"]) == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error


@pytest.mark.parametrize("command", [*COMMANDS, "analyze pca", "analyze distortion"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dimr {command}")
    assert "%(" not in text
    assert "None" not in text


def test_every_argument_is_explained():
    """Check that the help of each command describes all of its arguments."""
    parsers = [build_parser()]
    while parsers:
        parser = parsers.pop()
        for action in parser._actions:
            children = action.choices if isinstance(action.choices, dict) else {}
            parsers += children.values()
            assert children or action.help, f"{parser.prog}: {action.dest}"
