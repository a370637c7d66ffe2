"""``ltcore retrieve``: a page, a few lines about it, and wrong words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ltcore
from ltcore.errors import ConfigError
from tests.commands import command
from tests.conftest import png
from tests.training.runs import run, tiny_run

__all__ = ["command"]


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieve") / "tiny"
    run(tiny_run(train__epochs=1, data__uri=tiny_shards), tiny_shards, folder)
    return folder


def test_the_page_goes_into_the_run_and_is_the_same_again(command: Any, trained: Path) -> None:
    done = command("retrieve", trained)
    assert done.code == 0, done.err
    page = trained / "retrieve.html"
    assert f"Page: {page}\n" in done.out and "of 32 nearest training images are of the query's class." in done.out
    before = page.read_bytes()
    assert command("retrieve", trained).code == 0 and page.read_bytes() == before


def test_own_images_are_queries(command: Any, trained: Path, tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"<{n}>.png").write_bytes(png(np.random.default_rng(n), 40, 20))
    output = tmp_path / "page.html"
    done = command("retrieve", trained, tmp_path, "--neighbors", 3, "--prototypes", 2, "--output", output)
    assert done.code == 0 and "of the query's class" not in done.out, "nobody knows their classes"
    text = output.read_text()
    assert text.count('alt="query"') == 3 and "&lt;0&gt;.png" in text and "<0>" not in text
    assert text.count('<article id="prototype-') == 2


def test_the_function_finds_the_same(command: Any, trained: Path, tmp_path: Path) -> None:
    assert command("retrieve", trained, "--output", tmp_path / "page.html").code == 0
    found = ltcore.retrieve(trained, output=tmp_path / "again.html", verbose=False)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()
    assert len(found.queries) == 4 and all(len(query.neighbors) == 8 for query in found.queries)
    with pytest.raises(ConfigError, match="neighbors must be >= 1, got 0"):
        ltcore.retrieve(trained, neighbors=0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--neighbors", "65"], 2, "--neighbors 65: a page shows at most 64"),
        (["--output", "page.txt"], 2, "expected the ending .html"),
        (["no-such-image.png"], 1, "no-such-image.png"),
        (["--data", "no-such-data"], 1, "no-such-data"),
    ],
)
def test_wrong_words(command: Any, trained: Path, words: list[str], code: int, said: str) -> None:
    done = command("retrieve", trained, *words)
    assert said in done.err and "Traceback" not in done.err
    assert done.code == code


def test_a_backbone_needs_data_and_its_weights(command: Any, tiny_shards: str, trained: Path) -> None:
    assert "give --data" in command("retrieve", "resnet50").err
    done = command("retrieve", "resnet8", "--data", tiny_shards)
    assert done.code and "no weights of resnet8 are published" in done.err
    assert "give --data" in command("retrieve", "timm:tf_efficientnet_lite0").err
    done = command("retrieve", "resnet50", "--data", tiny_shards, "--weights", "null")
    assert "--weights null: features need weights. Give a file, or default" in done.err
    assert "Leave it out" in command("retrieve", trained, "--weights", "default").err


@pytest.mark.slow
def test_a_network_of_timm_is_a_backbone(
    command: Any, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "lite0.pth")
    monkeypatch.chdir(tmp_path)
    words = ["--data", tiny_shards, "--weights", "lite0.pth", "--output", tmp_path / "page.html"]
    done = command("retrieve", "timm:tf_efficientnet_lite0", *words)
    assert "made for this page by k-means from the local features of this network" in done.out, done.err
    assert "tf_efficientnet_lite0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_too_many_images(command: Any, trained: Path, tmp_path: Path) -> None:
    for n in range(65):
        (tmp_path / f"{n}.png").touch()
    done = command("retrieve", trained, tmp_path)
    assert done.code and "65 images were given; a page shows at most 64" in done.err
