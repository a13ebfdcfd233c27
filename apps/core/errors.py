"""Errors that a person can be told."""


class AppError(Exception):
    """Base: `code` is stable, `message` is a sentence for the person who asked."""

    code = "error"
    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConflictError(AppError):
    """Somebody else changed it first."""

    code = "conflict"
    status = 409


class NotAllowedError(AppError):
    """The state of the object does not allow it."""

    code = "not_allowed"
    status = 422
