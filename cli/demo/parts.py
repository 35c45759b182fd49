"""What the story is told with: the recorded boots, the guest, and the disk image."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

from attestation.simulator.boot import Recording
from cli.demo.claims import Ledger
from cli.demo.disk_image import DiskImage, examine_user_image, make_default_image
from cli.demo.guest_image import GuestImage, build_guest, default_cache_directory
from cli.demo.story import Story
from cli.demo.world import World


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that is made or read before the story begins."""

    image: DiskImage
    guest: GuestImage

    def story(self, directory: Path, ports: list[int], ledger: Ledger) -> Story:
        """Lay the world out in ``directory``, with nothing running yet."""
        good, changed = Recording.load("good"), Recording.load("changed-command-line")
        images = (self.image.path.parent, self.guest.kernel.parent)
        return Story(World.lay_out(directory, ports, images), ledger, good, changed, self.image, self.guest)


def load_parts(directory: Path, disk: Path | None) -> Parts:
    """Examine the user's image or make one, and have the guest ready.

    Raises:
        ServingError: The image cannot be used, or the guest cannot be built.
    """
    if disk is not None:
        image = examine_user_image(disk, random.Random(os.urandom(16)))  # noqa: S311 - chooses where to look
    else:
        marker = b"The quick brown fox vouches for the lazy dog. " + os.urandom(16).hex().encode() + b"\n"
        image = make_default_image(directory / "image.raw", marker)
    return Parts(image, build_guest(default_cache_directory()))
