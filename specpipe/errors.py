"""The exceptions that cross module borders."""


class SpecpipeError(Exception):
    """Base of all errors that specpipe raises on purpose."""


class UserError(SpecpipeError):
    """Bad input: a flag, file, prompt, model pair or setting.

    The message is one line that names the value and the remedy; the command line prints it as it
    is and exits with code 2.
    """


class ProtocolError(SpecpipeError):
    """A message or a sequence of messages that the protocol does not allow."""


class WorkerError(SpecpipeError):
    """A worker could not be started, or was lost and could not come back."""
