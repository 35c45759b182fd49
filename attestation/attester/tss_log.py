"""Keep the tss2 libraries from writing to stderr: each NV index that is not there would print two lines."""

import os


def silence() -> None:
    """Turn the libraries' log off, unless the user set TSS2_LOG.

    They read the variable when they first have something to say, so this comes before the first context is made.
    """
    os.environ.setdefault("TSS2_LOG", "all+NONE")
