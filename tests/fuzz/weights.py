"""A target: files of other people's weights."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

from tests.fuzz import mutate
from tests.fuzz.harness import SilentError


class Weights:
    """Files of weights in the three forms that are read. Numbers in them may be any that are finite."""

    NAME = "timm:test_vit"

    def __init__(self, folder: Path) -> None:
        import timm
        import torch
        from safetensors.torch import save

        from ltcore.models.net import LongTailNet, ModelConfig
        from ltcore.training.init_from import read_backbone

        state = timm.create_model("test_vit").state_dict()
        zipped, before_1_6 = io.BytesIO(), io.BytesIO()
        torch.save(state, zipped)
        torch.save(state, before_1_6, _use_new_zipfile_serialization=False)
        self.files = {".safetensors": save(state), ".pth": zipped.getvalue(), ".pt": before_1_6.getvalue()}
        self.folder, config = folder, ModelConfig(name=self.NAME)
        own = LongTailNet(config, 3, frozenset(), 0).state_dict()
        self.read = lambda file: read_backbone(str(file), own, config)[0]

    def originals(self) -> list[tuple[str, bytes]]:
        return list(self.files.items())

    def mutated(self, rng: random.Random) -> tuple[str, bytes]:
        ending = rng.choice(list(self.files))
        data = self.files[ending]
        if rng.random() < 0.2:
            return ending, mutate.any_bytes(rng, data)
        if ending == ".safetensors":
            end = 8 + int.from_bytes(data[:8], "little")
            names = json.dumps(mutate.tree(rng, json.loads(data[8:end])), default=str).encode()
            return ending, len(names).to_bytes(8, "little") + names + data[end:]
        if ending == ".pt":
            return ending, mutate.any_bytes(rng, data[:8192]) + data[8192:]
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
            for part in old.infolist():
                content = old.read(part)
                new.writestr(part, mutate.any_bytes(rng, content) if part.filename.endswith(".pkl") else content)
        return ending, changed.getvalue()

    def run(self, case: tuple[str, bytes]) -> None:
        ending, data = case
        file = self.folder / f"weights{ending}"
        file.write_bytes(data)
        if any(not bool(value.isfinite().all()) for value in self.read(file).values()):
            raise SilentError("weights that are not finite")
