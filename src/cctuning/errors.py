"""Errors a user can mend.

Floor 0: imported by every room, imports none. A `UserError` carries one line that says what is wrong, where, what was
expected and what to do next; the command line prints that line alone and exits with status 2. Everything else that is
raised is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input: the message is one line that names the place, the value, what was expected and the next step."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
