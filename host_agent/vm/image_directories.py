"""Where on this host the files lie that a VM may be made from or booted from.

The agent can read every file of the host; callers who name paths may not. Which files may get into a guest is the host
administrator's word, given as directories in the agent's configuration.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from host_agent.errors import ImageReason, ImageRefused


@dataclass(frozen=True, slots=True)
class ImageDirectories:
    """Directories of images, kernels and initial RAM disks; none of them: nothing is allowed."""

    paths: tuple[Path, ...] = ()

    def require(self, path: str) -> Path:
        """Resolve a path, links included, and require it in one of the directories.

        Raises:
            ImageRefused: NOT_IN_IMAGE_DIRECTORY.
        """
        resolved = Path(path)
        with contextlib.suppress(OSError, RuntimeError):
            resolved = resolved.resolve()
        if not any(resolved.is_relative_to(directory.resolve()) for directory in self.paths):
            named = ", ".join(map(str, self.paths)) or "none is configured"
            raise ImageRefused(
                ImageReason.NOT_IN_IMAGE_DIRECTORY, f"{path} does not lie in an image directory of this host ({named})"
            )
        return resolved

    def require_file(self, path: str) -> Path:
        """As ``require``, for a file that is there.

        Raises:
            ImageRefused: NOT_IN_IMAGE_DIRECTORY, NOT_FOUND.
        """
        resolved = self.require(path)
        if not resolved.is_file():
            raise ImageRefused(ImageReason.NOT_FOUND, f"there is no file at {path}")
        return resolved
