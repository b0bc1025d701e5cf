"""The root of the errors that an operator is expected to meet.

Each package derives its own from it. The command line prints the message of any of them as one line
and exits with status 1; everything else is a bug and shows its traceback.
"""


class OperatorError(Exception):
    """Something outside the code is not as it has to be; the message says what to do."""
