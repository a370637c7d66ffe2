"""Names of timm's networks, read without importing it, are those that timm lists itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from ltcore.models import timm_names
from ltcore.models.net import ModelConfig

timm = pytest.importorskip("timm")


def test_they_are_timms() -> None:
    assert timm_names.networks() == set(timm.list_models())
    tagged = set(timm_names.complete("timm:resnet50."))
    assert tagged == {f"timm:{name}" for name in timm.list_models("resnet50.*", include_tags=True)}
    assert timm_names.complete("timm:vit_tiny_p") == sorted(f"timm:{n}" for n in timm.list_models("vit_tiny_p*"))


def test_a_tag_that_only_timms_code_knows_is_known() -> None:
    unread = set(timm.list_pretrained()) - timm_names._names()[1] - timm_names.networks()
    for name in sorted(unread)[:3]:
        timm_names.check_name(f"timm:{name}")


def test_the_beginning_comes_before_the_names() -> None:
    assert timm_names.complete("") == timm_names.complete("ti") == ["timm:"]
    assert timm_names.complete("resnet") == []


def test_without_timm_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    timm_names._names.cache_clear()
    try:
        assert timm_names.complete("") == timm_names.complete("timm:res") == []
        with pytest.raises(
            ValueError, match=r"name=timm:resnet50 needs timm, which is not installed. .*ltcore\[timm\]"
        ):
            ModelConfig(name="timm:resnet50")
    finally:
        timm_names._names.cache_clear()


def test_neither_models_nor_completion_import_timm() -> None:
    code = (
        "import sys, ltcore.models, ltcore.models.net, ltcore.models.weights, ltcore.cli.complete\n"
        "ltcore.models.net.ModelConfig(name='timm:resnet50.a1_in1k', weights='a1_in1k')\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_that_are_tags() -> None:
    assert timm_names.is_tag("augreg_in21k")
    assert not any(map(timm_names.is_tag, ("auto", "default", "a.safetensors", "/x/y", "~x", "s3://b/w.pt")))
