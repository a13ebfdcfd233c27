"""The scoring API of integrators: versioned, keyed, idempotent; answers in the request or tells where to ask."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import lru_cache, wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import redis
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from ninja import Field, Header, NinjaAPI, Schema, Status
from ninja.errors import AuthenticationError, ValidationError
from ninja.security import APIKeyHeader, HttpBearer
from pydantic import AwareDatetime, ConfigDict, field_validator, model_validator

from apps.accounts.api import Actor, Role, key_authenticate, person_id
from apps.core import clock
from apps.core.errors import AppError
from apps.core.stages import Seconds, header
from apps.fraud import jobs, rules, selectors
from apps.fraud.contracts import Asked, ParsedTransaction, Refusal, ScoreAnswer, api_source
from apps.fraud.jobs.answers import listener
from apps.fraud.services.requests import RequestRefusedError, request_accept

P = ParamSpec("P")
T = TypeVar("T")
WAIT_S = 2.0  # then the answer is 202 and a URL
_ROLES = {Role.INTEGRATOR, Role.ADMIN}

api = NinjaAPI(
    title="Assay",
    version="1",
    urls_namespace="api-v1",
    description="Scores card transactions. Keys: `Authorization: Bearer …` or `X-API-Key: …`.",
)


class TransactionIn(Schema):
    """A transaction to score. The card number is replaced by a keyed token before anything is stored."""

    model_config = ConfigDict(extra="forbid")

    transaction_id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
    at: Annotated[AwareDatetime, Field(description="When, with its offset from UTC: 2026-05-12T03:12:44+02:00")]
    card: Annotated[str, Field(min_length=1, max_length=64, description="A card number or your own id of the card")]
    terminal: Annotated[str, Field(min_length=1, max_length=64)]
    amount_cents: Annotated[int, Field(ge=0, le=rules.MAX_AMOUNT_CENTS, description="Whole cents", strict=True)]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217")] = "EUR"

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, values: Any) -> Any:
        names = values if isinstance(values, dict) else getattr(values, "_obj", {})
        for name in names if isinstance(names, dict) else ():
            if rules.is_card_secret(str(name)):
                raise ValueError("security codes and PINs are refused; do not send them")
        return values

    @field_validator("card", "terminal")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("must be printable characters")
        return value.strip()

    @field_validator("at")
    @classmethod
    def _plausible(cls, value: datetime) -> datetime:
        if value.year < 1970 or value > clock.now() + timedelta(days=1):
            raise ValueError("lies outside 1970 … tomorrow")
        return value


class ScoreOut(Schema):
    """A score, or where it stands."""

    id: int
    transaction_id: str
    state: str
    probability: float | None = None
    score: int | None = None
    band: str | None = None
    alert_id: int | None = None
    model_digest: str = ""
    scored_at: str = ""
    error: str = ""
    status_url: str


class ErrorOut(Schema):
    """Why not: a stable code, a sentence, and messages by field."""

    code: str
    message: str
    fields: dict[str, list[str]] = {}


_ERRORS = {401: ErrorOut, 409: ErrorOut, 422: ErrorOut}


class _Bearer(HttpBearer):
    """`Authorization: Bearer KEY`."""

    async def authenticate(self, request: HttpRequest, token: str) -> Actor | None:
        return await _actor(request, token)


class _Header(APIKeyHeader):
    """`X-API-Key: KEY`."""

    param_name = "X-API-Key"

    async def authenticate(self, request: HttpRequest, key: str | None) -> Actor | None:
        return await _actor(request, key) if key else None


authenticate = [_Bearer(), _Header()]


@api.post(
    "transactions/score",
    auth=authenticate,
    response={200: ScoreOut, 202: ScoreOut, **_ERRORS},
    summary="Score one transaction",
    url_name="score",
)
async def score(
    request: HttpRequest,
    response: HttpResponse,
    body: TransactionIn,
    idempotency_key: Annotated[str, Header(alias="Idempotency-Key", max_length=128)] = "",
) -> Status:
    """Scores a transaction and answers in the request; after a time-out answers 202 with the URL to ask at.

    Sent twice with the same Idempotency-Key it is scored once and answered alike; the same key with another body is
    refused with 422. The header Server-Timing says where the time went.
    """
    asked = Asked(
        token=uuid.uuid4().hex,
        owner_id=person_id(request.auth),
        key=idempotency_key,
        body_sha256=hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).hexdigest(),
        row=_parsed(body),
    )
    answer, stages = await _ask_worker(asked)
    if stages:
        response["Server-Timing"] = header(stages)
    answer = answer or await _in_thread(request_accept)(asked=asked, at=clock.now())
    if answer.state == "queued":  # it may just have been scored
        answer = (await _in_thread(selectors.answers)(ids=[answer.id]))[0]
    return Status(202 if answer.state == "queued" else 200, _out(answer))


@api.get(
    "transactions/{int:id}",
    auth=authenticate,
    response={200: ScoreOut, 401: ErrorOut, 404: ErrorOut},
    summary="Where a transaction stands",
    url_name="score-status",
)
async def status(request: HttpRequest, id: int) -> Status:
    """The state and, once there is one, the score of a transaction that this key's owner sent."""
    actor: Actor = request.auth
    found = await _in_thread(selectors.answer_for)(transaction_id=id, source=api_source(person_id(actor)))
    if found is None:
        return Status(404, {"code": "not_found", "message": "you have sent no such transaction"})
    return Status(200, _out(found))


@api.exception_handler(AuthenticationError)
def _unauthenticated(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    body = {"code": "unauthenticated", "message": "send a valid API key as `Authorization: Bearer` or `X-API-Key`"}
    response = api.create_response(request, body, status=401)
    response["WWW-Authenticate"] = "Bearer"
    return response


@api.exception_handler(ValidationError)
def _invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    fields: dict[str, list[str]] = {}
    for each in error.errors:
        place = [str(part) for part in each.get("loc", ()) if part not in ("body", "header", "path")]
        message = str(each.get("msg", "")).removeprefix("Value error, ")
        fields.setdefault(".".join(place) or "body", []).append(message)
    body = {"code": "input_invalid", "message": "some fields are not as they must be", "fields": fields}
    return api.create_response(request, body, status=422)


@api.exception_handler(AppError)
def _refused(request: HttpRequest, error: AppError) -> HttpResponse:
    return api.create_response(
        request, {"code": error.code, "message": error.message, "fields": {}}, status=error.status
    )


async def _actor(request: HttpRequest, secret: str) -> Actor | None:
    actor = await _in_thread(key_authenticate)(secret, origin=request.META.get("REMOTE_ADDR", ""))
    return actor if actor is not None and actor.role in _ROLES else None


def _in_thread(does: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Run database work in threads of ours that keep their connection; a fresh one costs more than the work itself."""
    if settings.CELERY_TASK_ALWAYS_EAGER:  # tests: inside the test's own transaction
        return sync_to_async(does)

    @wraps(does)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return does(*args, **kwargs)
        except (OperationalError, InterfaceError):
            connection.close()
            raise

    return sync_to_async(kept, thread_sensitive=False, executor=_threads())


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # SQLite has one writer: a second thread of ours would only wait for the first in SQLite's coarse sleeps.
    return ThreadPoolExecutor(1 if connection.vendor == "sqlite" else 4, thread_name_prefix="score-api")


async def _ask_worker(asked: Asked) -> tuple[ScoreAnswer | None, Seconds]:
    """What the worker says and its stages took; None when it does not answer in time or the broker is away.

    Raises RequestRefusedError.
    """
    if settings.CELERY_TASK_ALWAYS_EAGER:  # no worker, no broker
        return None, {}
    waiting = listener()
    try:
        await asyncio.wait_for(waiting.started(), timeout=1.0)
        with waiting.expect(asked.token) as outcome:
            if not await _in_thread(jobs.send_request)(asked=asked.as_json(), reply_to=waiting.name):
                return None, {}
            reply = await asyncio.wait_for(outcome, WAIT_S)
    except (TimeoutError, redis.RedisError, OSError):
        return None, {}
    if isinstance(reply.outcome, Refusal):
        raise RequestRefusedError(reply.outcome)
    return reply.outcome, reply.stages


def _parsed(body: TransactionIn) -> ParsedTransaction:
    offset = body.at.utcoffset() or timedelta(0)
    is_number = rules.is_card_number(body.terminal)
    return ParsedTransaction(
        line=0,
        external_id=body.transaction_id,
        at=body.at.astimezone(UTC).replace(microsecond=0),
        utc_offset_s=int(offset.total_seconds()),
        card_token=rules.card_token(body.card, key=settings.TOKEN_KEY),
        card_display=rules.card_display(body.card),
        terminal_key=rules.terminal_name(body.terminal) if is_number else body.terminal,
        terminal_name=rules.terminal_name(body.terminal),
        amount_cents=body.amount_cents,
        currency=body.currency,
    )


def _out(answer: ScoreAnswer) -> dict[str, Any]:
    return {**asdict(answer), "status_url": reverse("api-v1:score-status", args=[answer.id])}
