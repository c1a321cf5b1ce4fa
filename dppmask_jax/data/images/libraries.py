"""Libraries of extras that read further formats of images."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from dppmask_jax.data.images.decode import DecodeError, in_words

# As Pillow, see decode.py, they warn of broken metadata where pixels can be read, and they log an
# exception that they then raise.
warnings.filterwarnings("ignore", module=r"(pydicom|nibabel|tifffile)\.")
for _name in ("pydicom", "nibabel.global", "tifffile"):
    logging.getLogger(_name).addFilter(lambda record: False)


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Where a library is imported and reads something: what it raises becomes a DecodeError.

    Args:
      extra: whose library it is, to be installed where it is missing.
      what: is read, in words.

    Raises:
      DecodeError: the library is missing, or the file is broken.
      OSError: a file cannot be opened.
    """
    try:
        yield
    except (DecodeError, FileNotFoundError, PermissionError):
        raise
    except ModuleNotFoundError as error:
        raise DecodeError(
            f"{what} needs {error.name}: pip install 'dppmask-jax[{extra}]'"
        ) from error
    except Exception as error:  # on broken bytes these libraries raise nearly anything
        raise DecodeError(in_words(error)) from error
