"""Random changes of stored images (uint8, before preprocessing) that training used."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class CropFlip:
    """A random crop out of the image padded by ``padding`` black pixels, then a random mirror image.

    Every example draws its own offset and its own side (mirrored with probability one half).
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images of the same shape ``(N, C, H, W)`` and dtype."""
        count, _, height, width = images.shape
        room = 2 * self.padding + 1
        top = torch.randint(room, (count, 1), generator=generator)
        left = torch.randint(room, (count, 1), generator=generator)
        rows = top + torch.arange(height)  # (N, H)
        columns = left + torch.arange(width)  # (N, W)
        if self.flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = pad(images, (self.padding,) * 4)
        example = torch.arange(count).view(-1, 1, 1)
        crops = padded.movedim(1, -1)[example, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
        return crops.movedim(-1, 1).contiguous()
