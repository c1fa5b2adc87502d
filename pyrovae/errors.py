"""The one exception for mistakes that a user can mend, and the one for a wish to stop."""


class Error(ValueError):
    """A sentence that says what is wrong, where, and what is allowed or what to do.

    Args:
        message: the sentence.
        path: the dotted path of the field at fault, such as `model.prior.components`.
    """

    def __init__(self, message: str, path: str = "") -> None:
        self.message, self.path = message, path
        super().__init__(f"{path}: {message}" if path else message)

    def under(self, prefix: str) -> "Error":
        """The same error, its path counted from one level further out."""
        return Error(self.message, ".".join(filter(None, (prefix, self.path))))


class Interrupted(BaseException):
    """A fit was asked to stop, and has written a checkpoint.

    Args:
        message: where it stopped, and how it goes on.
        code: the exit code of a process that ends by the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def brief(failure: Exception) -> str:
    """The failure of other code in one line: its type, and the first line of what it says."""
    return f"{type(failure).__name__}: {failure}".splitlines()[0].removesuffix(": ")
