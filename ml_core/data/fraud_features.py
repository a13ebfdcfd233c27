"""What a transaction looks like against the memory of its card and its terminal: features and history tokens.

Everything is computed from the two entity states before the transaction is appended, so nothing looks ahead; a label
takes part only once it is known. An amount is "odd" for a card when it is ODD times its usual amount (the median of its
last SCAN transactions); a known fraud is "explained" when its amount was odd for its card or larger than LARGE_CENTS,
the large-amount rule of the published simulators, and "plain" otherwise: then the terminal is suspect.
"""

import numpy as np
from numba import njit

from ml_core.data.card_state import (
    COUNT,
    DELAYED,
    FIRST_AT,
    MAX_CENTS,
    SCAN,
    SUM,
    SUM_SQUARES,
    Pool,
    card_windows,
    cents_of,
    label_of,
    log_ratio_of,
    terminal_windows,
)

LARGE_CENTS = 22_000
ODD = 1.32193  # log2(2.5)
VERY_ODD = 1.80735  # log2(3.5)
FAR = 999.0  # days: "never"

CONTEXT = ("amount", "weekend", "night", "hour")
WINDOWS = tuple(
    f"{who}_{what}_{days}d"
    for who, whats in (("card", ("count", "mean")), ("terminal", ("count", "risk")))
    for what in whats
    for days in (1, 7, 30)
)
CARD = (
    "card_total", "card_age_days", "ratio_median", "ratio_mean", "ratio_max", "z_amount", "rank_amount", "card_median",
    "card_spread", "gap_days", "card_count_1h", "card_small_1d", "terminal_visits",
    "odd_1d", "odd_3d", "odd_7d", "odd_14d", "very_odd_7d", "very_odd_14d", "max_ratio_1d", "max_ratio_7d",
    "max_ratio_14d", "share_odd_7d", "share_odd_14d", "excess_14d", "since_odd", "second_ratio",
    "card_fraud_14d", "card_fraud_35d", "card_plain_fraud_35d", "card_odd_fraud_35d", "since_card_fraud",
    "since_card_genuine",
)  # fmt: skip
TERMINAL_AGES = (1, 3, 7, 14, 21, 28)
TERMINAL = (
    *(f"fraud_{d}d" for d in TERMINAL_AGES),
    *(f"plain_fraud_{d}d" for d in TERMINAL_AGES),
    *(f"known_{d}d" for d in TERMINAL_AGES),
    "newest_label", "run", "plain_run", "since_run_began", "since_plain_run_began", "since_genuine",
    "since_terminal_fraud", "genuine_since_fraud", "since_first_plain_35d", "gap_before_run",
    "unlabelled", "unlabelled_ratio", "unlabelled_odd", "early_fraud", "terminal_total", "terminal_gap_days",
)  # fmt: skip
FEATURES = CONTEXT + WINDOWS + CARD + TERMINAL
_CARD_AT = len(CONTEXT) + len(WINDOWS)
_TERMINAL_AT = _CARD_AT + len(CARD)

CARD_TOKENS, TERMINAL_TOKENS = 24, 32
CHANNELS = (
    "present", "log_amount", "log_now_over_then", "log_ratio", "log_gap", "age", "fraud", "genuine", "same_counterpart",
)  # fmt: skip


@njit(cache=True)
def context_features(at: int, offset: int, cents: int, f: np.ndarray) -> None:
    """Amount in units, the Handbook's two flags and the local hour (1970-01-01 was a Thursday)."""
    local = at + offset
    hour = (local % 86_400) / 3600.0
    f[0] = cents / 100.0
    f[1] = 1.0 if (local // 86_400 + 3) % 7 >= 5 else 0.0
    f[2] = 1.0 if hour < 7.0 else 0.0
    f[3] = hour


@njit(cache=True)
def card_features(cards: Pool, e: int, now: int, cents: int, peer: int, f: np.ndarray, scratch: np.ndarray) -> float:
    """Windows and history of the card; returns the amount's ratio to the card's usual amount."""
    card_windows(cards, e, now, cents, scratch)
    for k in range(6):
        f[4 + k] = scratch[k]
    median = _median(cards, e, now, scratch)
    seen = min(cards.end[e] - cards.live[e], SCAN)
    usual = max((median * seen + 2 * 5_000.0) / (seen + 2), 100.0)
    ratio = max(cents, 1) / usual
    g = f[_CARD_AT:]
    _card_profile(cards, e, now, cents, ratio, median, g)
    _card_recent(cards, e, now, cents, peer, ratio, usual, g)
    _card_labels(cards, e, now, g)
    return ratio


@njit(cache=True)
def terminal_features(terminals: Pool, e: int, now: int, f: np.ndarray, scratch: np.ndarray) -> None:
    """Windows, known frauds by age, runs and their ends, and what lies unlabelled at the terminal."""
    terminal_windows(terminals, e, now, scratch)
    for k in range(6):
        f[10 + k] = scratch[k]
    g = f[_TERMINAL_AT:]
    _terminal_recent(terminals, e, now, g)
    _terminal_known(terminals, e, now, g)


@njit(cache=True)
def history_tokens(pool: Pool, e: int, now: int, cents: int, peer: int, tokens: np.ndarray) -> None:
    """Fill tokens (k, channels) with the newest k events, newest first; rows beyond the history stay zero."""
    later = now
    log_now = np.log2(max(cents, 1))
    for k in range(min(len(tokens), pool.end[e] - pool.live[e])):
        event = pool.events[pool.end[e] - 1 - k]
        row = tokens[k]
        at = event[0]
        log_then = np.log2(max(cents_of(event), 1))
        label = label_of(event, now)
        row[0] = 1.0
        row[1] = (log_then - 12.0) / 3.0
        row[2] = (log_now - log_then) / 2.0
        row[3] = log_ratio_of(event) / 2.0
        row[4] = (np.log2(1.0 + (later - at) / 60.0) - 9.0) / 3.0
        row[5] = min((now - at) / 1_209_600.0, 4.0)
        row[6] = 1.0 if label == 2 else 0.0
        row[7] = 1.0 if label == 1 else 0.0
        row[8] = 1.0 if (event[2] >> 32) == peer else 0.0
        later = at


@njit(cache=True)
def _median(cards: Pool, e: int, now: int, scratch: np.ndarray) -> float:
    """Median cents of the last SCAN events, those known as fraud left out (insertion sort: SCAN is small)."""
    n = 0
    for i in range(cards.end[e] - 1, max(cards.live[e], cards.end[e] - SCAN) - 1, -1):
        event = cards.events[i]
        if label_of(event, now) == 2:
            continue
        x = float(cents_of(event))
        j = n
        while j > 0 and scratch[j - 1] > x:
            scratch[j] = scratch[j - 1]
            j -= 1
        scratch[j] = x
        n += 1
    if n == 0:
        return 5_000.0
    return scratch[n // 2] if n % 2 else 0.5 * (scratch[n // 2 - 1] + scratch[n // 2])


@njit(cache=True)
def _card_profile(cards: Pool, e: int, now: int, cents: int, ratio: float, median: float, g: np.ndarray) -> None:
    head = cards.head[e]
    n = head[COUNT]
    mean = head[SUM] / n if n else 5_000.0
    variance = head[SUM_SQUARES] / n - mean * mean if n > 2 else 0.25 * mean * mean
    spread = np.sqrt(max(variance, 0.0))
    g[0] = n
    g[1] = (now - head[FIRST_AT]) / 86_400.0 if n else 0.0
    g[2] = ratio
    g[3] = cents * (n + 2.0) / max(head[SUM] + 10_000.0, 1.0)
    g[4] = cents / head[MAX_CENTS] if head[MAX_CENTS] else 1.0
    g[5] = (cents - mean) / max(spread, 100.0)
    g[7] = median / 100.0
    g[8] = spread / max(mean, 100.0)
    g[9] = (now - cards.events[cards.end[e] - 1, 0]) / 86_400.0 if n else 99.0


@njit(cache=True)
def _card_recent(
    cards: Pool, e: int, now: int, cents: int, peer: int, ratio: float, usual: float, g: np.ndarray
) -> None:
    above = n = n7 = n14 = 0
    since_odd = FAR
    for k in (6, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24):
        g[k] = 0.0
    log_usual = np.log2(usual)
    for i in range(cards.end[e] - 1, max(cards.live[e], cards.end[e] - SCAN) - 1, -1):
        event = cards.events[i]
        age = (now - event[0]) / 86_400.0
        then = cents_of(event)
        n += 1
        above += then >= cents
        g[12] += (event[2] >> 32) == peer
        g[10] += age * 24.0 < 1.0
        g[11] += age < 1.0 and then < 500
        log_ratio = np.log2(max(then, 1)) - log_usual
        if log_ratio > ODD and since_odd == FAR:
            since_odd = age
        if age >= 14.0:
            continue
        n14 += 1
        n7 += age < 7.0
        r = 2.0**log_ratio
        g[24] += max(r - 2.0, 0.0)
        g[21] = max(g[21], r)
        if log_ratio > ODD:
            g[13] += age < 1.0
            g[14] += age < 3.0
            g[15] += age < 7.0
            g[16] += 1.0
        if log_ratio > VERY_ODD:
            g[17] += age < 7.0
            g[18] += 1.0
        if age < 7.0:
            g[20] = max(g[20], r)
        if age < 1.0:
            g[19] = max(g[19], r)
    g[6] = above / (n + 1.0)
    g[22] = g[15] / (n7 + 1.0)
    g[23] = g[16] / (n14 + 1.0)
    g[25] = since_odd
    g[26] = min(ratio, g[21])


@njit(cache=True)
def _card_labels(cards: Pool, e: int, now: int, g: np.ndarray) -> None:
    for k in (27, 28, 29, 30):
        g[k] = 0.0
    g[31] = FAR
    g[32] = FAR
    for i in range(cards.end[e] - 1, max(cards.live[e], cards.end[e] - SCAN) - 1, -1):
        event = cards.events[i]
        label = label_of(event, now)
        age = (now - event[0]) / 86_400.0
        if label == 1 and g[32] == FAR:
            g[32] = age
        if label != 2:
            continue
        if g[31] == FAR:
            g[31] = age
        if age < 35.0:
            g[27] += age < 14.0
            g[28] += 1.0
            if _explained(event):
                g[30] += 1.0
            else:
                g[29] += 1.0


@njit(cache=True)
def _explained(event: np.ndarray) -> bool:
    return log_ratio_of(event) >= ODD or cents_of(event) > LARGE_CENTS


@njit(cache=True)
def _terminal_recent(terminals: Pool, e: int, now: int, g: np.ndarray) -> None:
    """Events younger than the label delay: mostly unlabelled."""
    unlabelled = odd = early = 0
    log_ratios = 0.0
    end = terminals.end[e]
    for i in range(end - 1, max(terminals.head[e, DELAYED], end - SCAN) - 1, -1):
        event = terminals.events[i]
        label = label_of(event, now)
        if label == 0:
            unlabelled += 1
            odd += log_ratio_of(event) > ODD
            log_ratios += log_ratio_of(event)
        elif label == 2 and not _explained(event):
            early += 1
    g[28] = unlabelled
    g[29] = log_ratios / unlabelled if unlabelled else 0.0
    g[30] = odd
    g[31] = early
    g[32] = terminals.head[e, COUNT]
    g[33] = (now - terminals.events[end - 1, 0]) / 86_400.0 if terminals.head[e, COUNT] else 99.0


@njit(cache=True)
def _terminal_known(terminals: Pool, e: int, now: int, g: np.ndarray) -> None:
    """Events older than the delay, newest first: counts by age and the runs of consecutive frauds."""
    for k in range(28):
        g[k] = 0.0
    for k in (21, 22, 23, 24, 26):
        g[k] = FAR
    g[27] = 99.0
    in_run = in_plain = True
    u = terminals.head[e, DELAYED]
    for i in range(u - 1, max(terminals.live[e], u - SCAN) - 1, -1):
        event = terminals.events[i]
        label = label_of(event, now)
        if label == 0:
            continue
        since = (now - event[0]) / 86_400.0
        plain = label == 2 and not _explained(event)
        _count_by_age(since - 7.0, label == 2, plain, g)
        if g[18] == 0.0:
            g[18] = 1.0 if label == 2 else -1.0
        if label == 2:
            g[24] = min(g[24], since)
            if in_run:
                g[19] += 1.0
                g[21] = since
            if plain and in_plain:
                g[20] += 1.0
                g[22] = since
            if plain and since < 42.0:
                g[26] = since
        else:
            if in_run and g[19] > 0:
                g[27] = since - g[21]
            in_run = in_plain = False
            g[23] = min(g[23], since)
            g[25] += g[24] == FAR


@njit(cache=True)
def _count_by_age(age: float, fraud: bool, plain: bool, g: np.ndarray) -> None:
    for k in range(6):
        limit = 1 if k == 0 else 3 if k == 1 else 7 if k == 2 else 14 if k == 3 else 21 if k == 4 else 28
        if age < limit:
            g[k] += fraud
            g[6 + k] += plain
            g[12 + k] += 1.0
