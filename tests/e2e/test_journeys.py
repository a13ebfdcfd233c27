"""One journey for each role, in a real browser against the whole running stack."""

import re
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from testkit.demo_stack import PASSWORD, DemoStack

RUN_LIMIT_MS = 600_000
DRAFT_LIMIT_MS = 120_000


@pytest.fixture
def film(tmp_path) -> Path:
    """A chest film of an invented patient, as a DICOM file that the demo has not seen."""
    from ml_core.data.phantom_dicom import make_studies

    study = make_studies(uuid.uuid4().int % 2**31, patients=1, priors=0.0)[0]
    path = tmp_path / "film.dcm"
    path.write_bytes(study.files[0][1])
    return path


def score(page: Page, demo: DemoStack, *, amount_cents: int = 120_00, **headers: str):
    """Ask the API for a score of a new transaction."""
    body = {
        "transaction_id": uuid.uuid4().hex,
        "at": datetime.now(UTC).isoformat(),
        "card": "C-e2e-1",
        "terminal": "T-e2e-1",
        "amount_cents": amount_cents,
    }
    return page.request.post("/api/v1/transactions/score", data=body, headers={"X-API-Key": demo.api_key} | headers)


def test_an_analyst_claims_the_next_alert_by_keyboard_and_decides(sign_in):
    page = sign_in("analyst-1")
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    open_before = _count(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("claim next")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("tr[aria-selected=true]")).to_have_count(1)
    page.keyboard.press("n")
    page.wait_for_url(re.compile(r"/fraud/alerts/\d+/"))
    alert = page.url
    expect(page.locator("main")).to_contain_text("claimed by you")
    expect(page.get_by_role("heading", name=re.compile(r"^Why \d+"))).to_be_visible()
    page.get_by_role("button", name=re.compile("^Fraud")).click()
    page.wait_for_load_state()
    page.goto(alert)
    expect(page.locator("main")).to_contain_text("closed")
    assert _count(page) == open_before - 1


def test_a_radiologist_uploads_reads_edits_and_signs(sign_in, film):
    page = sign_in("radiologist-1")
    page.goto("/radiology/upload/")
    page.locator("input[name=files]").set_input_files(film)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url(re.compile(r"/radiology/batches/"))
    expect(page.locator("#batch-files tbody")).to_contain_text("stored", timeout=60_000)
    page.get_by_role("link", name="Reading list of this batch").click()
    page.locator("table[data-keys=list] tbody a").first.click()
    page.wait_for_url(re.compile(r"/radiology/studies/"))
    expect(page.locator("dicom-viewer canvas").first).to_be_visible()
    expect(page.locator(".report")).to_contain_text("not verified", timeout=DRAFT_LIMIT_MS)
    page.reload()

    page.locator("[data-add=impression]").click()
    page.locator("[data-section=impression] textarea").last.fill("Read in a test; no acute finding.")
    for box in page.locator("input[name=confirmed][type=checkbox]").all():
        box.check()
    expect(page.locator("[data-saved]")).to_contain_text(re.compile("saved", re.IGNORECASE))
    page.keyboard.press("Control+Enter")
    page.locator("#sign-password").fill(PASSWORD)
    page.locator("#sign button").click()
    expect(page.locator(".report")).to_contain_text("radiologist-1")
    expect(page.locator(".report textarea")).to_have_count(0)
    expect(page.locator(".report")).to_contain_text("Read in a test; no acute finding.")


def test_an_admin_trains_watches_promotes_and_the_next_score_carries_the_new_digest(sign_in, demo):
    page = sign_in("admin-1")
    before = score(page, demo).json()["model_digest"]
    page.goto("/training/new/")
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/training/\d+/"))
    expect(page.locator("#run-status")).to_have_attribute(
        "data-state", re.compile("DONE|FAILED|LOST"), timeout=RUN_LIMIT_MS
    )
    expect(page.locator("#run-status")).to_have_attribute("data-state", "DONE")
    page.reload()
    expect(page.locator("#run-log")).not_to_contain_text("Nothing yet")
    page.get_by_role("link", name=re.compile("^Promote")).click()
    page.get_by_role("button", name="Promote to champion").click()
    page.wait_for_load_state()
    answer = score(page, demo)
    assert answer.status == 200, answer.text()
    after = answer.json()["model_digest"]
    assert after != before
    page.goto("/models/")
    expect(page.locator("main")).to_contain_text(after[:8])


def test_an_auditor_finds_what_was_done_and_verifies_the_chain(sign_in):
    sign_in("analyst-2")
    page = sign_in("auditor-1")
    expect(page.get_by_role("heading", name="Audit")).to_be_visible()
    page.get_by_label("Who").fill("analyst-2")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody")).to_contain_text("analyst-2 read")
    page.get_by_role("button", name=re.compile("^Verify")).click()
    expect(page.locator("main")).to_contain_text("every link holds.", timeout=60_000)


def test_an_integrator_makes_a_key_scores_and_reads_the_reference(sign_in, demo):
    page = sign_in("integrator-1")
    page.get_by_label("What will use it").fill("journey")
    page.get_by_role("button", name="Make a key").click()
    key = page.locator(".secret").inner_text()
    answer = score(page, demo, **{"X-API-Key": key, "Idempotency-Key": "journey-1"})
    assert answer.status in {200, 202}, answer.text()
    assert 0 <= answer.json()["probability"] <= 1
    assert len(answer.json()["model_digest"]) == 64
    assert score(page, demo, **{"X-API-Key": "assay_0_0"}).status == 401
    page.goto("/api/v1/docs")
    expect(page.locator("#swagger-ui")).to_contain_text("/api/v1/transactions/score")


def _count(page: Page) -> int:
    return int(page.locator(".rail .count").first.inner_text().replace(",", ""))
