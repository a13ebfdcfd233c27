"""Errors of the engine's border: what a caller of ml_core can be told, each with a stable code."""


class EngineError(Exception):
    """Base of all errors that ml_core raises on purpose; `code` is stable and goes into rows and logs."""

    code = "engine_error"


class ArtifactError(EngineError):
    """An artifact is absent, incomplete, or its bytes do not match its digest."""

    code = "artifact_invalid"


class InputError(EngineError):
    """The caller's input does not satisfy the contract; the message names the field."""

    code = "input_invalid"


class EngineMissing(EngineError):
    """An engine was asked for whose package is not installed here, or that does not serve the model here."""

    code = "engine_missing"


class StateError(EngineError):
    """An entity state has an unknown version or is damaged."""

    code = "state_invalid"


class ImageError(EngineError):
    """An image cannot be decoded; the message says why."""

    code = "image_undecodable"


class RunError(EngineError):
    """A training run cannot start or go on; the message says why."""

    code = "run_failed"
