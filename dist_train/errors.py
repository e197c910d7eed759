"""The one exception that users are meant to see."""


class UserError(Exception):
    """Bad input: one line that names the thing (file, key, value) and the remedy.

    The command line prints it as ``dist-train: error: ...`` and leaves with exit code 1. Anything
    else that escapes is a defect of this program and keeps its traceback.
    """
