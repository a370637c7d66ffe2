"""Published weights of networks of timm: where their file is, its download, and what in it is the backbone's.

A file is looked for in this node's cache folder, where a person may have put it, then in the cache that timm shares with
other programs. It is downloaded into that one, by one process of a node while the others wait.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ltcore.errors import CheckpointError
from ltcore.models.timm_backbone import create, pretrained_config
from ltcore.models.timm_names import PREFIX, split_name
from ltcore.storage import cache_folder, cache_root, locked_in_cache

_SAFE = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""Files of a repository -> the same weights in a file that is preferred, as timm does."""

_LOG = logging.getLogger("ltcore.models")
_STANDING_IN = threading.Lock()


@dataclass(frozen=True)
class Published:
    """Weights of a network as timm publishes them: files of a repository of which one is enough, or an address."""

    network: str
    repository: str
    revision: str | None
    files: tuple[str, ...]
    url: str

    @property
    def place(self) -> Path:
        """Returns where on this node a person may put the file."""
        return cache_root() / "weights" / (self.repository or self.network) / self.files[0]

    def at_hand(self) -> Path | None:
        """Returns the file on this node; None where there is none. Nothing is downloaded."""
        return next((path for path in self._places() if path.is_file()), None)

    def _places(self) -> Iterator[Path]:
        yield from (self.place.with_name(name) for name in self.files)
        if not self.repository:
            yield self._hub_file()
            return
        from huggingface_hub import try_to_load_from_cache

        for name in self.files:
            found = try_to_load_from_cache(self.repository, name, revision=self.revision)
            if isinstance(found, str):
                yield Path(found)

    def _hub_file(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.files[0]

    def download(self) -> Path:
        """Fetches the file into the cache that timm uses. Raises errors of many types where that fails."""
        if not self.repository:
            self._hub_file().parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(self._hub_file()), progress=False)
            return self._hub_file()
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with _said_once(self.repository):
            for name in self.files[:-1]:
                try:
                    return Path(hf_hub_download(self.repository, name, revision=self.revision))
                except LocalEntryNotFoundError:  # no answer, which says nothing about the file
                    raise
                except EntryNotFoundError:
                    continue
            return Path(hf_hub_download(self.repository, self.files[-1], revision=self.revision))


@contextlib.contextmanager
def _said_once(repository: str) -> Iterator[None]:
    """Says once that a repository does not answer. huggingface_hub writes two lines for each of its attempts."""
    log, said = logging.getLogger("huggingface_hub.utils._http"), False

    def kept(record: logging.LogRecord) -> bool:
        nonlocal said
        text = record.getMessage()
        if " thrown while requesting " not in text and not text.startswith("Retrying in "):
            return True
        if not said:
            _LOG.warning("the repository %s does not answer; it is asked again for about half a minute", repository)
        said = True
        return False

    log.addFilter(kept)
    try:
        yield
    finally:
        log.removeFilter(kept)


def published(name: str, weights: str | None = None) -> Published | None:
    """Returns the weights that ``model.name`` and ``model.weights`` mean; None where none are published for the network."""
    config = pretrained_config(name, weights)
    repository, _, revision = str(config.get("hf_hub_id") or "").partition("@")
    url = str(config.get("url") or "")
    if not repository and not url:
        return None
    file = str(config.get("hf_hub_filename") or "pytorch_model.bin") if repository else Path(urlsplit(url).path).name
    safe = _SAFE.get(file, f"{file.removesuffix('.bin')}.safetensors" if file.endswith(".bin") else file)
    files = tuple(dict.fromkeys((safe, file))) if repository else (file,)
    return Published(split_name(name)[0], repository, revision or None, files, url)


def fetched(name: str, weights: str) -> Path:
    """Returns the file of published weights on this node, after a download where it is not there.

    Raises CheckpointError with what to do where there are none, or where they cannot be had.
    """
    found = published(name, weights)
    if found is None:
        raise CheckpointError(
            f"model.weights={weights}: timm publishes no weights of {name}. Set it to null, or give a file."
        )
    return fetch(found, f"model.weights={weights}", name, or_else=", or to null")


def fetch(found: Published, setting: str, name: str, or_else: str = "") -> Path:
    """Returns the file of published weights on this node, after a download where it is not there.

    ``setting`` is the key that asks for it with its value. Raises CheckpointError where the file cannot be had.
    """
    if (path := found.at_hand()) is not None:
        return path
    lock = cache_folder("weights") / f"{found.repository.replace('/', '--') or found.network}.lock"
    with locked_in_cache(lock):
        try:
            return found.at_hand() or found.download()
        except Exception as error:  # each layer of a download has errors of its own
            files = " or ".join(found.files)
            what = f"{files} of the repository {found.repository}" if found.repository else f"{files} of {name}"
            raise CheckpointError(
                f"{setting}: {what} is not on {socket.gethostname()} and cannot be downloaded ({type(error).__name__}). Fetch it "
                f"where there is a network and put it to {found.place}, or set {setting.partition('=')[0]} to a file that all "
                f"nodes reach{or_else}."
            ) from error


def backbone_tensors(name: str, weights: str | None, tensors: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Returns the tensors of a file under the names and with the sizes that timm's network has today, without classifier.

    timm's own filter of the network renames them and resamples position embeddings. The classifier is what timm calls so,
    and what else its network has only together with one, such as a norm of its own before it. Beside them: whether timm
    expects them to be all of the network's and no more. Raises errors of any type on the tensors of another network.
    """
    beginnings = tuple(f"{head}." for head in _classifiers(name, weights))
    renamed, network, strict = _renamed(name, weights, tensors)
    found = {key: value for key, value in renamed.items() if not key.startswith(beginnings)}
    if extra := found.keys() - network.state_dict().keys():
        extra &= _names_with_classifier(name, weights)
    return {key: value for key, value in found.items() if key not in extra}, strict


def _names_with_classifier(name: str, weights: str | None) -> Set[str]:
    """Returns the names of all tensors of timm's network, which is built without memory for them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return create(name, weights, num_classes=pretrained_config(name, weights)["num_classes"]).state_dict().keys()


def classifier_weight(name: str, weights: str | None, tensors: dict[str, Any]) -> Any:
    """Returns the weight [C, D] of the classifier in a file of timm's network; None where it has none.

    Of an image encoder of CLIP it is the projection into the space that images share with text.
    """
    renamed, *_ = _renamed(name, weights, tensors)
    return next((renamed[key] for head in _classifiers(name, weights) if (key := f"{head}.weight") in renamed), None)


def _classifiers(name: str, weights: str | None) -> tuple[str, ...]:
    heads = pretrained_config(name, weights).get("classifier") or ()
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _renamed(name: str, weights: str | None, tensors: dict[str, Any]) -> tuple[dict[str, Any], torch.nn.Module, bool]:
    """Returns the tensors as timm's filter gives them, the network that it fits them to, and whether all have to be there."""
    from timm.models import clean_state_dict

    inner = next((tensors[key] for key in ("state_dict", "model") if isinstance(tensors.get(key), dict)), tensors)
    found: dict[str, Any] = clean_state_dict(inner)
    network, filtered, strict = _how_to_load(name, weights)
    if filtered is not None:
        takes_network = len(inspect.signature(filtered).parameters) > 1
        found = filtered(found, network) if takes_network else filtered(found)
    return found, network, strict


def _how_to_load(name: str, weights: str | None) -> tuple[torch.nn.Module, Callable[..., Any] | None, bool]:
    """Returns a new network of timm, the function that fits files of weights to it, and whether all has to be in them.

    The function is None where the network needs none. timm hands both to the loader of published weights alone, so this
    stands in for the loader meanwhile.
    """
    from timm.models import _builder

    seen: list[tuple[Callable[..., Any] | None, bool]] = [(None, True)]
    loader = _builder.load_pretrained

    def note(*_: Any, filter_fn: Callable[..., Any] | None = None, strict: bool = True, **__: Any) -> None:
        seen.append((filter_fn, strict))

    with _STANDING_IN, torch.random.fork_rng(devices=[]):
        _builder.load_pretrained = note
        try:
            network = create(name, weights, pretrained=True)
        finally:
            _builder.load_pretrained = loader
    return network, *seen[-1]


def download_command(name: str) -> str:
    """Returns the command that fetches the published weights, for a person to run where there is a network."""
    return f"""python -c "import timm; timm.create_model('{name.removeprefix(PREFIX)}', pretrained=True)\""""
