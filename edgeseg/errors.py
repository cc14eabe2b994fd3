"""Every error edgeseg raises on purpose. Each message says what, which value, and what to do.

    EdgesegError
    ├── InputError            a frame, logits array, option or size that cannot be used as given
    │   └── ImageError        an image file that cannot be read or written
    ├── BundleError           a bundle that is missing, damaged, of another format, or lacks what was asked for
    ├── BackendError          a runtime that failed to open or run a network
    │   ├── BackendMissing    its package is not installed (the message holds the pip line)
    │   ├── DeviceError       the runtime is here, the device is not
    │   └── GoldenError       the runtime answers, but not what the bundle's golden frames say
    ├── ExportError           a network that cannot be exported, or whose export does not match torch
    └── CalibrationError      int8 that loses more than was allowed, or that a runtime computes wrongly

The command line prints the message as one line and exits with 1; anything else that escapes is a bug.
"""


class EdgesegError(Exception):
    """Base of all errors raised on purpose."""


class InputError(EdgesegError, ValueError):
    """A frame, array, option or size cannot be used as given."""


class ImageError(InputError):
    """An image file cannot be read or written."""


class BundleError(EdgesegError):
    """A bundle is missing, damaged, of another format, or lacks what was asked for."""


class BackendError(EdgesegError):
    """A runtime failed to open or to run a network."""


class BackendMissing(BackendError):
    """The runtime's package is not installed; the message holds the command that installs it."""


class DeviceError(BackendError):
    """The runtime is installed, but the device asked for is not here."""


class GoldenError(BackendError):
    """The runtime computes something else than the bundle's golden frames say."""


class ExportError(EdgesegError):
    """A network cannot be exported, or its export does not match what torch computes."""


class CalibrationError(EdgesegError):
    """No int8 variant within the limit was found, or a runtime does not compute it rightly; nothing was written."""


def one_line(error: object) -> str:
    """A library's error as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
