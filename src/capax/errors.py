"""The one tree of errors a caller of capax can meet.

Every message is one sentence: the offending name and value, the bound it broke, and
what to do next. Programming mistakes inside capax are ordinary Python errors.
"""


class CapaxError(Exception):
    """Base of every error that capax raises on purpose."""


class FileFormatError(CapaxError):
    """A model, tokenizer or template file is damaged, lying or of an unknown kind."""


class ConfigError(CapaxError):
    """A configuration value, option or request field is outside its allowed range."""


class ContextLengthError(ConfigError):
    """A prompt, alone or with the tokens it asks for, is longer than the context."""


class CapacityError(CapaxError):
    """The work does not fit the budget; the message says what would fit."""


class QueueFullError(CapacityError):
    """As much is waiting as may wait; the same request may be taken a moment later."""


class StoreError(CapaxError):
    """A registry, cache or store directory cannot be read or written."""


class EndpointError(CapaxError):
    """A model endpoint failed, or answered something that breaks its protocol."""


class SandboxError(CapaxError):
    """Untrusted code or a template was stopped, or no isolation could be set up."""
