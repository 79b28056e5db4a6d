"""Features of texts and images, by a CLIP model of open_clip (the extra `clip`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import BadInputError, SnipError

if TYPE_CHECKING:
    from PIL import Image


class Clip:
    """A CLIP model, loaded when it is made.

    Parameters
    ----------
    model
        open_clip's name of the architecture, such as `ViT-H-14`; the model that made the features
        which are searched.
    pretrained
        open_clip's tag of the weights, or a file with them; empty: random weights, for tests.

    Raises
    ------
    SnipError
        open_clip is not installed, or the weights are not at hand and cannot be fetched.
    """

    def __init__(self, model: str, pretrained: str) -> None:
        try:
            import open_clip
        except (ImportError, RuntimeError) as error:
            raise BadInputError(
                f"Texts and images need open_clip ({error}): pip install 'snip_assets[clip]'."
            ) from error
        if model not in open_clip.list_models():
            raise BadInputError(
                f"{model}: open_clip knows no such model; `--clip-model` takes one of "
                f"open_clip.list_models(), such as {', '.join(open_clip.list_models()[:3])}."
            )
        try:
            made = open_clip.create_model_and_transforms(model, pretrained=pretrained or None)
        except (RuntimeError, OSError, ValueError) as error:
            raise SnipError(
                f"the weights {pretrained!r} of {model} are not at hand and did not load "
                f"({type(error).__name__}). Download them where there is a network and give the "
                "file with --clip-weights."
            ) from error
        self.net: Any = made[0].eval()
        self.prepare: Any = made[2]
        self.tokenize: Any = open_clip.get_tokenizer(model)

    def text(self, words: str) -> np.ndarray:
        """float32[1, D], unit length."""
        with torch.no_grad():
            return self._row(self.net.encode_text(self.tokenize([words])))

    def image(self, path: Path) -> np.ndarray:
        """float32[1, D], unit length.

        Raises
        ------
        BadInputError
            It is no readable image.
        """
        pixels = self.prepare(open_image(path))
        with torch.no_grad():
            return self._row(self.net.encode_image(pixels[None]))

    @staticmethod
    def _row(value: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(value.float(), dim=1).numpy()


def open_image(path: Path) -> Image.Image:
    """The pixels of an image file in RGB; of an animation, its first picture.

    What is transparent becomes white, as img2dataset has it, and 16 bits become 8.

    Raises
    ------
    BadInputError
        It is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                # Pillow takes all above 255 for white.
                levels = (np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)
                picture = Image.fromarray(levels).convert("RGBA")
            else:
                picture = image.convert("RGBA")
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file.") from error
    except Exception as error:
        # A damaged file makes Pillow raise almost anything, SyntaxError among others.
        raise BadInputError(f"{path}: not a readable image ({error}).") from error
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
