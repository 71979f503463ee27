"""The exceptions a user of nwc can meet.

Every message names what was found, what was wanted and what to do about it. Anything else that
escapes the package is a bug in the package.
"""


class NWCError(Exception):
    """Base of every error that nwc raises on purpose."""


class BitstreamError(NWCError):
    """Bytes that are not a valid NWC bitstream, or not one that this version can read."""


class FormatError(NWCError):
    """A folder or file that is not the checkpoint, codec or archive it should be."""


class ConfigError(NWCError):
    """An option, or a combination of options, that cannot be carried out."""


class CalibrationError(NWCError):
    """Calibration text or statistics that cannot be used."""
